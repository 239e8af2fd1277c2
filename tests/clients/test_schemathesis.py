"""schemathesis reads the gateway's OpenAPI document and looks for answers that it does not allow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.kit import ABSENT, World

pytest.importorskip("schemathesis", reason=ABSENT)


def test_schemathesis_finds_no_answer_that_the_document_does_not_allow(world: World, tmp_path: Path) -> None:
    world.script()  # a provider that takes everything: refusals are the gateway's own
    command = f"-m schemathesis.cli run {world.root}/openapi.json --checks all --phases examples,coverage,fuzzing"
    ran = subprocess.run(
        [sys.executable, *command.split(), "--max-examples", "50", "--seed", "1", "--request-timeout", "10"],
        cwd=tmp_path,  # it keeps notes there
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert sum(one.total.requests for one in world.gateway.counters.live()) > 20, "it did not get through to a model"
    assert world.gateway.counters.rejected["internal"] == 0
