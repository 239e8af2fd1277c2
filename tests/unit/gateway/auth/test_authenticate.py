"""Who may call: keys in their three headers, rotation, bindings, tokens that the API server reviews, outages of it."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import errno
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from promptrollout.gateway.auth import caller_keys, token_reviews
from promptrollout.gateway.auth.authenticate import Auth, Authenticator, AuthMode
from promptrollout.gateway.auth.caller_keys import CallerKeys, EntryError, parse_entry
from promptrollout.gateway.auth.token_reviews import ServiceAccountRule, looks_like_token
from promptrollout.gateway.process import Gateway, Settings
from promptrollout.gateway.server.app import Limits
from tests.unit.gateway.kit import CANARY, LOOPBACK, Caller, Provider, arm, counted, delivery, request, samples, value

KEY = "pr-0123456789abcdef"


def hashed(key: str) -> str:
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def put(folder: Path, name: str, *lines: str) -> None:
    """As the kubelet does it: a new file in the old one's place."""
    folder.mkdir(exist_ok=True)
    temporary = folder / f".{name}"
    temporary.write_text("\n".join(lines))
    temporary.replace(folder / name)


@asynccontextmanager
async def gateway_with(
    tmp_path: Path, provider: Provider, mode: AuthMode, limits: Limits | None = None, **auth: Any
) -> AsyncIterator[tuple[Gateway, Caller]]:
    settings = Settings(
        "default",
        "ns",
        "pod-1",
        networks=LOOPBACK,
        state_dir=tmp_path / "state",
        provider_keys_dir=tmp_path / "keys",
        caller_keys_dir=tmp_path / "callers",
        auth=Auth(mode, **auth),
        limits=limits or Limits(),
    )
    gateway = Gateway(settings)
    await gateway.registry.apply("support", delivery(stable=arm(url=provider.url)))
    await gateway.registry.apply("billing", delivery(rolloutUID="uid-2", stable=arm(url=provider.url)))
    try:
        yield gateway, Caller(gateway.serving_app)
    finally:
        await gateway.providers.close()


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer  {KEY} "},
        {"x-api-key": KEY},
        {"api-key": KEY},
        {"authorization": "Basic abc", "x-api-key": KEY},
    ],
    ids=["openai", "lower", "anthropic", "azure", "behind-basic"],
)
async def test_a_key_is_taken_where_sdks_put_it(tmp_path: Path, provider: Provider, headers: dict[str, str]) -> None:
    put(tmp_path / "callers", "shop", hashed(KEY))
    async with gateway_with(tmp_path, provider, "Keys") as (gateway, caller):
        assert (await caller.post(request(), headers=headers)).status == 200
        assert counted(gateway) == {"stable": (1, 0)}
    assert not {"x-api-key", "api-key", "authorization"} & provider.headers[0].keys()


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_api_key"),
        ({"authorization": "Bearer "}, "missing_api_key"),
        ({"authorization": f"Basic {KEY}"}, "missing_api_key"),
        ({"authorization": f"Bearer {KEY}x"}, "invalid_api_key"),
        ({"authorization": f"Bearer {hashed(KEY)}"}, "invalid_api_key"),
        ({"x-api-key": "shop"}, "invalid_api_key"),
        ({"x-api-key": KEY * 1000}, "invalid_api_key"),
    ],
)
async def test_another_key_is_401_and_counts_for_no_rollout(
    tmp_path: Path, provider: Provider, headers: dict[str, str], code: str
) -> None:
    put(tmp_path / "callers", "shop", hashed(KEY))
    async with gateway_with(tmp_path, provider, "Keys") as (gateway, caller):
        for path in ("/v1/chat/completions", "/v1/nothing"):
            answer = await caller.post(request(), path=path, headers=headers)
            assert (answer.status, answer.error["code"]) == (401, code)
            assert answer.error["type"] == "authentication_error"
            assert answer.headers["www-authenticate"] == "Bearer"
            assert KEY not in answer.body.decode()
        assert (await caller.get("/v1/models")).status == 401
        found = await samples(gateway)
        assert value(found, "promptrollout_requests_total") == 0
        assert value(found, "promptrollout_gateway_rejected_requests_total") == 3
    assert provider.requests == []


async def test_a_key_is_bound_to_rollouts_and_knows_of_no_others(tmp_path: Path, provider: Provider) -> None:
    put(tmp_path / "callers", "shop", hashed(KEY), "rollouts: support, other", "# what the shop may use")
    async with gateway_with(tmp_path, provider, "Keys") as (_, caller):
        shop = {"x-api-key": KEY}
        assert (await caller.post(request(), headers=shop)).status == 200
        refused = await caller.post(request(model="billing"), headers=shop)
        unknown = await caller.post(request(model="nothing"), headers=shop)
        assert (refused.status, refused.error["code"]) == (404, "model_not_found")
        assert refused.body == unknown.body.replace(b"nothing", b"billing")
        listed = await caller._call("GET", "/v1/models", b"", shop, None, None)
        assert [model["id"] for model in listed.json["data"]] == ["support"]
        assert (await caller._call("GET", "/v1/models/billing", b"", shop, None, None)).status == 404


@pytest.mark.parametrize("path", ["/v1/prompts/{}/render", "/ofrep/v1/evaluate/flags/{}"])
async def test_a_bound_key_reaches_no_other_rollout_by_another_path(
    tmp_path: Path, provider: Provider, path: str
) -> None:
    put(tmp_path / "callers", "shop", hashed(KEY), "rollouts: support")
    async with gateway_with(tmp_path, provider, "Keys") as (_, caller):
        shop = {"x-api-key": KEY}
        body = {"context": {"targetingKey": "u1"}, "user": "u1"}
        assert (await caller.post(body, path=path.format("support"), headers=shop)).status == 200
        assert (await caller.post(body, path=path.format("billing"), headers=shop)).status == 404
        flags = await caller.post(body, path="/ofrep/v1/evaluate/flags", headers=shop)
        assert (b"support" in flags.body, b"billing" in flags.body) == (True, False)


async def test_a_bound_key_votes_on_its_own_answers_only(tmp_path: Path, provider: Provider) -> None:
    put(tmp_path / "callers", "shop", hashed(KEY), "rollouts: support")
    put(tmp_path / "callers", "all", hashed("all"))
    async with gateway_with(tmp_path, provider, "Keys") as (gateway, caller):
        for name, uid in (("support", "uid-1"), ("billing", "uid-2")):
            changed = delivery(2, rolloutUID=uid, responseKey=uid[-1] * 64, stable=arm(url=provider.url))
            await gateway.registry.apply(name, changed)

        async def vote(model: str, key: str) -> int:
            answer = await caller.post(request(model=model), headers={"x-api-key": "all"})
            body = {"response_id": answer.json["id"], "rating": "negative"}
            return (await caller.post(body, path="/v1/feedback", headers={"x-api-key": key})).status

        assert [await vote("support", KEY), await vote("billing", KEY), await vote("billing", "all")] == [200, 404, 200]


async def test_a_tenant_is_whom_the_key_says_and_nobody_else(tmp_path: Path, provider: Provider) -> None:
    put(tmp_path / "callers", "acme", hashed("acme-key"), "tenant: acme")
    put(tmp_path / "callers", "other", hashed("other-key"))
    audience = {"include": [{"header": "X-PromptRollout-Tenant", "values": ["acme"]}]}
    async with gateway_with(tmp_path, provider, "Keys") as (gateway, caller):
        canary = arm(CANARY, provider.url)
        changed = delivery(2, weight=100, stable=arm(url=provider.url), canary=canary, audience=audience)
        await gateway.registry.apply("support", changed)
        pretended = {"x-promptrollout-tenant": "acme"}
        for key, variant in (("acme-key", "canary"), ("other-key", "stable")):
            answer = await caller.post(request(), headers={"x-api-key": key, **pretended})
            assert answer.headers["x-promptrollout-variant"] == variant
            context = {"targetingKey": "u1", "X-PromptRollout-Tenant": "acme"}
            flag = await caller.post({"context": context}, "/ofrep/v1/evaluate/flags/support", {"x-api-key": key})
            assert flag.json["variant"] == variant


async def test_keys_rotate_without_a_restart(tmp_path: Path, provider: Provider) -> None:
    folder = tmp_path / "callers"
    put(folder, "shop", hashed("old"))
    async with gateway_with(tmp_path, provider, "Keys") as (gateway, caller):

        async def statuses(*keys: str) -> list[int]:
            gateway.authenticator.refresh()
            return [(await caller.post(request(), headers={"x-api-key": key})).status for key in keys]

        put(folder, "shop", hashed("old"), hashed("new"))
        assert await statuses("old", "new") == [200, 200]
        put(folder, "shop", hashed("new"))
        assert await statuses("old", "new") == [401, 200]
        put(folder, "shop", "new")  # a key where its hash belongs: the last good state stays
        assert await statuses("old", "new") == [401, 200]
        (folder / "shop").unlink()
        assert await statuses("old", "new") == [401, 401]
        put(folder, "shop", hashed("late"))
        assert await statuses("late") == [200]
        found = await samples(gateway)
        assert value(found, "promptrollout_gateway_caller_keys") == 1


def test_the_files_of_a_mounted_secret_are_looked_at_when_the_kubelet_swapped_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Path] = []
    iterdir = Path.iterdir

    def listed(path: Path) -> Iterator[Path]:
        looked.append(path)
        return iterdir(path)

    def swap(name: str, key: str) -> None:
        """As the kubelet does it: one link changes, and with it all files."""
        put(tmp_path / name, "shop", hashed(key))
        (tmp_path / "..new").symlink_to(name)
        (tmp_path / "..new").rename(tmp_path / "..data")

    swap("..2026_1", "old")
    (tmp_path / "shop").symlink_to("..data/shop")
    monkeypatch.setattr(Path, "iterdir", listed)
    keys = CallerKeys(tmp_path)
    for _ in range(5):
        assert keys.refresh() == []
    assert (len(looked), keys.find(b"old") is not None) == (1, True)
    swap("..2026_2", "new")
    for _ in range(5):
        assert keys.refresh() == []
    assert (len(looked), keys.find(b"old"), keys.find(b"new") is not None) == (2, None, True)


@pytest.mark.parametrize("method", ["iterdir", "read_text"])
def test_a_pod_that_could_not_read_what_was_swapped_tries_again(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a key that was taken out would be taken until the Secret changes once more."""

    def swap(name: str, key: str) -> None:
        put(tmp_path / name, "shop", hashed(key))
        (tmp_path / "..new").symlink_to(name)
        (tmp_path / "..new").rename(tmp_path / "..data")

    def fails(*_: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    swap("..2026_1", "old")
    (tmp_path / "shop").symlink_to("..data/shop")
    keys = CallerKeys(tmp_path)
    assert keys.refresh() == []
    swap("..2026_2", "new")
    with monkeypatch.context() as patched:
        patched.setattr(Path, method, fails)
        assert "cannot be read: Too many open files" in " ".join(keys.refresh())
        assert keys.find(b"old") is not None, "the last good state"
    assert keys.refresh() == []
    assert (keys.find(b"old"), keys.find(b"new") is not None) == (None, True)


async def test_unknown_keys_leave_a_trace_but_not_one_each(
    tmp_path: Path, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "callers", "shop", hashed("fine"))
    now = [1000.0]
    async with gateway_with(tmp_path, provider, "Keys") as (gateway, caller):
        gateway.authenticator._clock = lambda: now[0]
        for seconds, expected in ((0, 1), (1, 1), (59, 2)):
            now[0] += seconds
            for _ in range(3):
                assert (await caller.post(request(), headers={"x-api-key": "a-guess"})).status == 401
            assert caplog.text.count("with an invalid key or token") == expected
        assert "6 requests with an invalid key" in caplog.text
        assert "a-guess" not in caplog.text
        found = await samples(gateway)
        assert value(found, "promptrollout_gateway_rejected_requests_total", code="invalid_api_key") == 9


async def test_a_broken_entry_is_named_but_not_shown(
    tmp_path: Path, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "callers", "shop", hashed("fine"))
    put(tmp_path / "callers", "clumsy", "sk-my-own-secret")
    async with gateway_with(tmp_path, provider, "Keys") as (_, caller):
        assert (await caller.post(request(), headers={"x-api-key": "fine"})).status == 200
    assert "clumsy: line 1 must be" in caplog.text
    assert "sk-my-own-secret" not in caplog.text


@pytest.mark.parametrize(
    "lines",
    ["sha256:abc", "sha512:" + "a" * 64, "rollouts:", "rollouts: A_b", "tenant: a b", "tenant:", "\x00", "sha256:"],
)
def test_what_no_entry_may_say(lines: str) -> None:
    with pytest.raises(EntryError, match="line 1"):
        parse_entry("shop", lines)


def test_entries_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller_keys, "MAX_FILES", 3)
    for n in range(5):
        put(tmp_path / "callers", f"caller-{n}", hashed(str(n)))
    put(tmp_path / "callers", "caller-0", *["# " + "x" * 1000] * 20)
    keys = CallerKeys(tmp_path / "callers")
    problems = keys.refresh()
    assert len(keys) == 2
    assert [problem for problem in problems if "5 callers" in problem]
    assert [problem for problem in problems if "caller-0: more than" in problem]
    with pytest.raises(EntryError, match="17 keys"):
        parse_entry("shop", "\n".join(hashed(str(n)) for n in range(17)))


async def test_without_authentication_everybody_is_answered_and_no_credential_goes_on(
    tmp_path: Path, provider: Provider
) -> None:
    async with gateway_with(tmp_path, provider, "None") as (_, caller):
        for headers in ({}, {"authorization": "Bearer unused"}, {"x-api-key": "x"}):
            assert (await caller.post(request(), headers=headers)).status == 200
    assert all("authorization" not in headers for headers in provider.headers)


async def test_a_key_has_a_rate_of_its_own(tmp_path: Path, provider: Provider) -> None:
    put(tmp_path / "callers", "busy", hashed("busy"))
    put(tmp_path / "callers", "calm", hashed("calm"))
    limits = Limits(requests_per_minute_per_key=6, burst_per_key=2)
    async with gateway_with(tmp_path, provider, "Keys", limits) as (gateway, caller):
        answers = [await caller.post(request(), headers={"x-api-key": "busy"}) for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 429]
        assert (answers[2].error["code"], answers[2].error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
        assert 9 <= int(answers[2].headers["retry-after"]) <= 10
        assert (await caller.post(request(), headers={"x-api-key": "calm"})).status == 200
        assert counted(gateway) == {"stable": (3, 0)}


# ------------------------------------------------------------ ServiceAccounts


def token(audience: Any = ("promptrollout",), seconds: float = 600, subject: str = "shop", **claims: Any) -> str:
    """Signed by nobody: the simulated API server looks at the subject only."""

    def part(content: Any) -> str:
        return base64.urlsafe_b64encode(orjson.dumps(content)).rstrip(b"=").decode()

    body = {"aud": list(audience), "exp": time.time() + seconds, "sub": subject, **claims}
    return f"{part({'alg': 'RS256'})}.{part(body)}.c2ln"


class Reviewer:
    """An API server that reviews tokens. `down` drops connections, `forbids` says that we may not ask."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.users = {"shop": "system:serviceaccount:ns:shop", "person": "alice", "far": "system:serviceaccount:far:x"}
        self.down = False
        self.forbids = False
        self.audiences = ["promptrollout"]
        self.gate: asyncio.Event | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ApiClient]:
        app = web.Application()
        app.router.add_post(token_reviews.PATH, self._review)
        runner = web.AppRunner(app, shutdown_timeout=0.01)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            async with ApiClient(Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")) as client:
                yield client
        finally:
            await runner.cleanup()

    async def _review(self, incoming: web.Request) -> web.Response:
        body = await incoming.json()
        self.asked.append(body["spec"])
        if self.gate is not None:
            await self.gate.wait()
        if self.down:
            assert incoming.transport is not None
            incoming.transport.abort()
        if self.forbids:
            return web.json_response({"kind": "Status", "code": 403, "message": body["spec"]["token"]}, status=403)
        payload = body["spec"]["token"].split(".")[1]
        subject = orjson.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["sub"]
        user = self.users.get(subject)
        status = {"authenticated": user is not None, "user": {"username": user}, "audiences": self.audiences}
        return web.json_response({**body, "status": status})


@asynccontextmanager
async def reviewed(
    tmp_path: Path,
    provider: Provider,
    rules: tuple[ServiceAccountRule, ...] = (ServiceAccountRule("ns"),),
    mode: AuthMode = "ServiceAccounts",
) -> AsyncIterator[tuple[Gateway, Callable[[str], Any], Reviewer]]:
    reviewer = Reviewer()
    async with (
        reviewer.running() as client,
        gateway_with(tmp_path, provider, mode, service_accounts=rules) as (gateway, caller),
    ):
        gateway.client = client

        async def ask(credential: str, **changes: Any) -> Any:
            return await caller.post(request(**changes), headers={"authorization": f"Bearer {credential}"})

        yield gateway, ask, reviewer


async def test_a_token_is_reviewed_once_with_its_audience(tmp_path: Path, provider: Provider) -> None:
    async with reviewed(tmp_path, provider) as (_, ask, reviewer):
        shop = token()
        reviewer.gate = asyncio.Event()
        first = [asyncio.create_task(ask(shop)) for _ in range(20)]
        await asyncio.sleep(0.05)
        reviewer.gate.set()
        assert [answer.status for answer in await asyncio.gather(*first)] == [200] * 20
        assert (await ask(shop)).status == 200
        assert reviewer.asked == [{"token": shop, "audiences": ["promptrollout"]}]


async def test_whose_tokens_are_refused(tmp_path: Path, provider: Provider) -> None:
    async with reviewed(tmp_path, provider) as (_, ask, reviewer):
        for subject in ("nobody", "person", "far"):
            answer = await ask(token(subject=subject))
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        assert len(reviewer.asked) == 3
        # these are refused without asking
        for bad in (
            token(audience=["https://kubernetes.default.svc"]),
            token(seconds=-1),
            token(exp="soon"),
            "eyJ.eyJ.x",
            "eyJhb.é.x",
            "eyJ" + "a" * 9000 + ".b.c",
            "some-key",
        ):
            refused = await ask(bad)
            assert refused.status == 401
            assert ("with audience 'promptrollout'" in refused.error["message"]) is looks_like_token(bad.encode())
        assert len(reviewer.asked) == 3
        reviewer.audiences = []  # an API server that does not look at audiences
        assert (await ask(token(jti="new"))).status == 401


async def test_rules_bind_service_accounts(tmp_path: Path, provider: Provider) -> None:
    rules = (
        ServiceAccountRule("far", "x", rollouts=frozenset(["billing"])),
        ServiceAccountRule("far"),
    )
    async with reviewed(tmp_path, provider, rules) as (_, ask, reviewer):
        reviewer.users["also-far"] = "system:serviceaccount:far:y"
        assert (await ask(token(subject="far"))).status == 404
        assert (await ask(token(subject="far"), model="billing")).status == 200
        assert (await ask(token(subject="also-far"))).status == 200
        assert (await ask(token(subject="shop"))).status == 401


async def test_an_outage_of_the_api_server_locks_nobody_out_who_was_in(
    tmp_path: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with reviewed(tmp_path, provider) as (gateway, ask, reviewer):
        tokens = gateway.authenticator.tokens
        assert tokens is not None
        now = [1000.0]
        monkeypatch.setattr(tokens, "_clock", lambda: now[0])
        known, bad = token(), token(subject="nobody")
        assert [(await ask(one)).status for one in (known, bad)] == [200, 401]
        reviewer.down = True
        now[0] += token_reviews.GOOD_SECONDS + 1
        assert (await ask(known)).status == 200
        for unknown in (bad, token(jti="new")):
            answer = await ask(unknown)
            assert (answer.status, answer.error["code"]) == (503, "authentication_unavailable")
            assert answer.headers["retry-after"] == "1"
        now[0] += token_reviews.OUTAGE_SECONDS
        assert (await ask(known)).status == 503
        reviewer.down = False
        assert (await ask(known)).status == 200
        del reviewer.users["shop"]  # deleted: noticed within the time
        now[0] += token_reviews.GOOD_SECONDS + 1
        assert (await ask(known)).status == 401


async def test_a_gateway_that_may_not_ask_says_so_without_the_token(
    tmp_path: Path, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    async with reviewed(tmp_path, provider) as (_, ask, reviewer):
        reviewer.forbids = True
        shop = token()
        answer = await ask(shop)
        assert answer.status == 503
        assert shop not in answer.body.decode() + caplog.text
        assert "gateway.tokenReviewers" in caplog.text


async def test_what_is_remembered_of_tokens_is_bounded(
    tmp_path: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_reviews, "MAX_REMEMBERED", 5)
    monkeypatch.setattr(token_reviews, "MAX_WAITING", 3)
    async with reviewed(tmp_path, provider) as (gateway, ask, reviewer):
        tokens = gateway.authenticator.tokens
        assert tokens is not None
        for n in range(8):
            assert (await ask(token(jti=n))).status == 200
        assert len(tokens) == 5
        reviewer.gate = asyncio.Event()
        waiting = [asyncio.create_task(ask(token(jti=f"new-{n}"))) for n in range(4)]
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result().status for task in done] == [503]
        reviewer.gate.set()
        assert sorted(answer.status for answer in await asyncio.gather(*waiting)) == [200, 200, 200, 503]


async def test_keys_and_tokens_side_by_side(tmp_path: Path, provider: Provider) -> None:
    put(tmp_path / "callers", "shop", hashed(KEY))
    async with reviewed(tmp_path, provider, mode="KeysAndServiceAccounts") as (_, ask, reviewer):
        assert [(await ask(one)).status for one in (KEY, token(), "other")] == [200, 200, 401]
        assert len(reviewer.asked) == 1


def test_settings_of_one_process_are_a_copy(tmp_path: Path) -> None:
    """The authenticator follows the mode of its own settings."""
    settings = Settings("default", "ns", "pod-1", networks=LOOPBACK, state_dir=tmp_path, caller_keys_dir=tmp_path)
    assert Gateway(settings).authenticator.keys is None
    assert Gateway(dataclasses.replace(settings, auth=Auth("Keys"))).authenticator.keys is not None


def test_that_there_are_no_keys_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    callers = Authenticator(CallerKeys(tmp_path / "callers"))
    for _ in range(3):
        callers.refresh()
    assert caplog.text.count("no caller keys are configured") == 1
    (tmp_path / "callers").mkdir()
    entry = tmp_path / "callers" / "shop"
    entry.write_text(f"sha256:{'0' * 64}")
    callers.refresh()
    entry.unlink()
    callers.refresh()
    assert caplog.text.count("no caller keys are configured") == 2
