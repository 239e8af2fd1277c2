"""CPU of a request by its parts: the gateway's own functions, called in a row without a network."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import orjson

from benchmarks.gateway.served import LOOPBACK, delivery
from promptrollout.gateway.auth.authenticate import Authenticator
from promptrollout.gateway.auth.caller_keys import CallerKeys
from promptrollout.gateway.http.exchange import Reply, headers_of
from promptrollout.gateway.pipeline.account import account
from promptrollout.gateway.pipeline.prepare import prepare
from promptrollout.gateway.pipeline.request import parse
from promptrollout.gateway.process import Gateway, Settings
from promptrollout.gateway.server.metrics_page import exposition
from promptrollout.llm.answers.choices import choices_of
from promptrollout.llm.answers.usage import Usage
from promptrollout.llm.protocols import chat

KEY = b"caller-key-of-the-benchmark"
TIMES = 3_000
ROUNDS = 7


def timed(work: Callable[[], object]) -> float:
    """Microseconds of CPU of one call: the best of several rounds, as others share the machine."""
    best = float("inf")
    for _ in range(ROUNDS):
        before = time.process_time()
        for _ in range(TIMES):
            work()
        best = min(best, time.process_time() - before)
    return 1e6 * best / TIMES


def parts(payload: bytes, answer: bytes) -> dict[str, float]:
    """Microseconds by part; what is not in it is the servers' and the client's sockets and protocols."""
    return asyncio.run(_parts(payload, answer))


def page_of_metrics(rollouts: int) -> tuple[float, float]:
    """Milliseconds of CPU that a page takes, and the longest turn of the event loop: no request goes on then."""
    return asyncio.run(_page_of_metrics(rollouts))


async def _page_of_metrics(rollouts: int) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as state:
        gateway = Gateway(Settings("bench", "default", "pod", Path(state), Path(state), networks=LOOPBACK))
        for number in range(rollouts):
            await gateway.registry.apply(f"app-{number}", delivery(number, "http://127.0.0.1:1"))
        whole, longest = float("inf"), float("inf")
        for _ in range(ROUNDS):
            turns: list[float] = []
            beside = asyncio.create_task(_turns(turns))
            await asyncio.sleep(0)
            began = time.thread_time()
            async for _ in exposition(gateway.counters, gateway.state()):
                pass
            whole = min(whole, time.thread_time() - began)
            beside.cancel()
            longest = min(longest, max(turns))
        return 1e3 * whole, 1e3 * longest


def callers_of(folder: Path) -> Authenticator:
    """One, with a key."""
    folder.mkdir()
    (folder / "caller").write_text(f"sha256:{hashlib.sha256(KEY).hexdigest()}\n")
    found = Authenticator(CallerKeys(folder))
    found.refresh()
    return found


async def _turns(found: list[float]) -> None:
    """What each turn of the event loop takes of the processor."""
    last = time.thread_time()
    while True:
        await asyncio.sleep(0)
        now = time.thread_time()
        found.append(now - last)
        last = now


async def _parts(payload: bytes, answer: bytes) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as state:
        gateway = Gateway(Settings("bench", "default", "pod", Path(state), Path(state), networks=LOOPBACK))
        await gateway.registry.apply("app-0", delivery(0, "http://127.0.0.1:1"))
        requests, protocol = gateway.serving_app._requests, chat.CHAT
        raw = [(b"host", b"x"), (b"content-type", b"application/json"), (b"content-length", b"250")]
        headers = headers_of({"headers": raw})
        request = parse(protocol, headers, payload, 0.0)
        rollout = requests._rollout(request)
        assignment = requests._assign(rollout, request)
        prepared = prepare(rollout, request, assignment)
        parsed = orjson.loads(answer)

        async def send(_: object) -> None: ...

        def judge() -> None:
            found = orjson.loads(answer)
            prepared.outcome.usage = Usage.read(found.get("usage"))
            prepared.outcome.answered(choices_of(found))

        def sign() -> None:
            answer_id = prepared.answer_id()
            if answer_id is None or not answer_id.replace_in(dict(parsed), ("id",)) or not answer_id.replaced(answer):
                raise RuntimeError("the answer has no id that could be signed")

        callers = callers_of(Path(state, "callers"))

        def authenticate() -> None:
            """Keys are on here, which they are not by default. It never waits, so one step runs it to its end."""
            try:
                callers.caller({"authorization": b"Bearer " + KEY}).send(None)
            except StopIteration:
                return
            raise RuntimeError("it waits for something")

        reply = Reply(send)
        prepared.outcome.usage = Usage.read(parsed.get("usage"))
        prepared.outcome.answered(choices_of(parsed))
        return {
            "parse": timed(lambda: parse(protocol, headers_of({"headers": raw}), payload, 0.0)),
            "authenticate": timed(authenticate),
            "route": timed(lambda: requests._assign(requests._rollout(request), request)),
            "render": timed(lambda: prepare(rollout, request, assignment)),
            "call: write": timed(lambda: orjson.dumps(prepared.provider_request.body)),
            "check": timed(judge),
            "sign the id": timed(sign),
            "account": timed(lambda: account(prepared, reply)),
        }
