"""The command annotation: what the CLI writes the operator reads; anything else is a sentence, never an exception."""

import json

import pytest

from promptrollout.api.command import Command, new_id, parse_command
from promptrollout.api.names import ANNOTATION_COMMAND

GOOD = {"id": "1", "verb": "promote-full", "rolloutUID": "u", "revision": 3, "attempt": 1, "step": 0, "by": "me"}


def parsed(text: str) -> Command | str | None:
    return parse_command({ANNOTATION_COMMAND: text})


def test_round_trip() -> None:
    command = Command.model_validate(GOOD)
    assert parse_command(command.to_annotation()) == command


def test_absent() -> None:
    assert parse_command({}) is None
    assert parsed("") is None


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("promote", "Invalid JSON"),
        ("[]", "Input should be an object"),
        ("{}", "id"),
        (json.dumps(GOOD | {"verb": "explode"}), "verb"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "rolloutUID"}), "rolloutUID"),
        (json.dumps(GOOD | {"revision": "x"}), "revision"),
        (json.dumps(GOOD | {"reason": "x" * 513}), "reason"),
        (json.dumps(GOOD | {"id": ""}), "id"),
    ],
)
def test_malformed_names_the_field_and_the_fix(text: str, names: str) -> None:
    problem = parsed(text)
    assert isinstance(problem, str)
    assert problem.startswith(f"annotation {ANNOTATION_COMMAND}: {names}")
    assert problem.endswith("write it with `promptrollout`")


def test_fields_of_a_later_release_are_ignored() -> None:
    assert isinstance(parsed(json.dumps(GOOD | {"colour": "red"})), Command)


def test_ids_differ() -> None:
    assert new_id() != new_id()
