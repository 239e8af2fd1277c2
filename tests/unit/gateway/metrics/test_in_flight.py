"""What a pod was busy with is known after it died, however it died; what it did before is not held against anybody."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from promptrollout.api.delivery import PodReport
from promptrollout.gateway.metrics.in_flight import FILE, InFlightFile
from promptrollout.gateway.process import Gateway, Settings
from tests.unit.gateway.kit import CANARY, SCHEMA, Caller, Provider, arm, completion, delivery, request, says

DIES = """
import asyncio, faulthandler, os, signal, sys, time
from pathlib import Path
from promptrollout.llm.prompts import prompt as prompts
from promptrollout.gateway.process import Gateway, Settings
from tests.unit.gateway.kit import CANARY, LOOPBACK, Caller, arm, delivery, request

def dies(*_):
    if sys.argv[2] == "hangs":
        faulthandler.dump_traceback_later(0.1, exit=True)
    else:
        os.kill(os.getpid(), int(sys.argv[2]))
    while True:
        pass

async def main():
    gateway = Gateway(Settings("default", "ns", "pod-1", state_dir=Path(sys.argv[1]), networks=LOOPBACK))
    canary = arm(CANARY)
    if sys.argv[3] == "loading":
        compiled = prompts.compile_renderer
        prompts.compile_renderer = lambda text: dies() if text == "You are b." else compiled(text)
    await gateway.registry.apply("other", delivery(rolloutUID="uid-2"))
    await gateway.registry.apply("support", delivery(weight=100, stable=arm(), canary=canary))
    await Caller(gateway.serving_app).post(request(model="other"), "/v1/prompts/other/render")
    from promptrollout.llm.protocols import chat
    chat.messages_of = lambda prompt, body: dies() if prompt.spec.messages[0].content == "You are b." else None
    await Caller(gateway.serving_app).post(request())

asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["hangs", str(int(signal.SIGSEGV)), str(int(signal.SIGKILL))])
@pytest.mark.parametrize("what", ["answering", "loading"])
async def test_the_next_process_says_which_version_the_last_one_died_in(tmp_path: Path, how: str, what: str) -> None:
    command = [sys.executable, "-c", DIES, str(tmp_path), how, what]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == (1 if how == "hangs" else -int(how)), done.stderr
    gateway = Gateway(Settings("default", "ns", "pod-1", state_dir=tmp_path))
    report = (await Caller(gateway.admin_app).get("/rollouts")).json
    (found,) = report["diedIn"]
    assert (found["rolloutUID"], found["digest"], found["variant"]) == ("uid-1", f"sha256:{CANARY}", "canary")
    assert PodReport.model_validate(report).died_in[0].at.endswith("Z")
    assert Gateway(Settings("default", "ns", "pod-1", state_dir=tmp_path)).counters.in_flight_file.died_in == []


async def test_a_pod_that_waits_is_busy_with_nobody(
    tmp_path: Path, gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    state = tmp_path / "state" / FILE
    canary = arm(CANARY, provider.url, outputSchema=SCHEMA)
    await gateway.registry.apply("support", delivery(weight=100, stable=arm(url=provider.url), canary=canary))
    seen: list[bytes] = []

    async def looks(incoming: object) -> object:
        seen.append(state.read_bytes())
        return await says(body=completion('{"answer": "yes"}'))(incoming)  # type: ignore[arg-type]

    provider.script.append(looks)  # type: ignore[arg-type]
    assert (await caller.post(request())).status == 200
    for content in (*seen, state.read_bytes()):
        before = InFlightFile()
        (tmp_path / "copy").mkdir(exist_ok=True)
        (tmp_path / "copy" / FILE).write_bytes(content)
        before.open(tmp_path / "copy")
        assert before.died_in == []
    assert b"uid-1" in state.read_bytes()


@pytest.mark.parametrize("left", [b"", b"\1", b"\1" + b"\xff" * 400, os.urandom(4096), b"\1" * 4096])
def test_a_file_that_is_something_else_accuses_nobody(tmp_path: Path, left: bytes) -> None:
    (tmp_path / FILE).write_bytes(left)
    in_flight_file = InFlightFile()
    in_flight_file.open(tmp_path)
    assert in_flight_file.died_in == []


def test_without_a_disk_the_pod_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    in_flight_file = InFlightFile()
    in_flight_file.open(tmp_path / "file")
    assert in_flight_file.died_in == []
    assert len(in_flight_file.record(1)) == len(in_flight_file.record(0))
