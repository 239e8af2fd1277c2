"""schemathesis reads the gateway's OpenAPI document and looks for answers that it does not allow: without a model."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest

from promptrollout.gateway.auth.authenticate import Auth
from promptrollout.gateway.openapi.document import document
from tests.clients.kit import ABSENT, World
from tests.clients.schemathesis_kit import ASKS_A_MODEL, COUNTS, check, everything_of, run, statuses

pytest.importorskip("schemathesis", reason=ABSENT)

__all__ = ["statuses"]  # a fixture


@pytest.mark.parametrize("path", sorted({*document()["paths"]} - {*ASKS_A_MODEL, COUNTS}))
def test_schemathesis_finds_no_answer_that_the_document_does_not_allow(
    world: World, statuses: Counter[int], tmp_path: Path, path: str
) -> None:
    check(world, statuses, tmp_path, path)


def test_schemathesis_gets_nothing_without_a_key_where_keys_are_asked_for(
    statuses: Counter[int], tmp_path: Path
) -> None:
    callers = tmp_path / "callers"
    callers.mkdir()
    (callers / "shop").write_text(f"sha256:{hashlib.sha256(b'a-key').hexdigest()}")
    key = {"Authorization": "Bearer a-key"}
    with World(tmp_path / "state", caller_keys_dir=callers, auth=Auth("Keys")) as world:
        served = everything_of(world, key)
        served["security"].remove({})  # or a request without a key would be as good as one with it
        statuses.clear()
        # its acceptance of fields is for the test above: what a provider's protocol cannot say is refused by name
        arguments = ["--checks", "all", "--exclude-checks", "positive_data_acceptance", "--phases", "fuzzing"]
        arguments += ["--max-examples", "5", *(f"-H{name}: {value}" for name, value in key.items())]
        said = run(world, served, tmp_path, *arguments)
        assert f"Tested: {len(served['paths'])}" in said
    assert statuses[401] > len(served["paths"])
    assert statuses[200] > len(served["paths"])
