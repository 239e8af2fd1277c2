"""What a metrics source gets to see, and what is said when it cannot be made."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from promptrollout.operator.cluster.metrics import Metrics
from promptrollout.operator.sources.access import SourceAccess
from promptrollout.operator.sources.lanes import SourceError
from promptrollout.operator.sources.prometheus import Source

Seen = list[tuple[str | None, str | None]]


@pytest.fixture
async def server() -> AsyncIterator[tuple[str, Seen]]:
    seen: Seen = []

    async def query(request: web.Request) -> web.Response:
        seen.append((request.headers.get("Authorization"), request.headers.get("X-Scope-OrgID")))
        return web.json_response({"status": "success", "data": {"result": [1, "1"]}})

    app = web.Application()
    app.router.add_get("/api/v1/query", query)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", seen
    await runner.cleanup()


async def test_headers_and_the_present_token_are_sent(server: tuple[str, Seen], tmp_path: Path) -> None:
    url, seen = server
    token = tmp_path / "token"
    token.write_text("first\n")
    source = Source("default", url, Metrics(), access=SourceAccess({"X-Scope-OrgID": "team"}, str(token)))
    try:
        await source.read_clock()
        token.write_text("second\n")
        await source.read_clock()
        assert seen == [("Bearer first", "team"), ("Bearer second", "team")]
        token.unlink()
        with pytest.raises(SourceError, match="a file for its access cannot be read"):
            await source.read_clock()
    finally:
        source.close()


async def test_a_missing_ca_file_is_said() -> None:
    source = Source("default", "https://127.0.0.1:1", Metrics(), ca_file="/nonexistent/ca.pem")
    try:
        with pytest.raises(SourceError, match=r"a file for its access cannot be read: .*ca\.pem"):
            await source.read_clock()
    finally:
        source.close()
