"""schemathesis reads the gateway's OpenAPI document and looks for answers that it does not allow: with a model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.clients.kit import ABSENT, World
from tests.clients.schemathesis_kit import ASKS_A_MODEL, COUNTS, check, statuses

pytest.importorskip("schemathesis", reason=ABSENT)

__all__ = ["statuses"]  # a fixture


@pytest.mark.parametrize("path", sorted({*ASKS_A_MODEL, COUNTS}))
def test_schemathesis_finds_no_answer_that_the_document_does_not_allow(
    world: World, statuses: Counter[int], tmp_path: Path, path: str
) -> None:
    check(world, statuses, tmp_path, path)
