"""The command annotation: what the CLI writes the operator reads; anything else is malformed, never an exception."""

import json

import pytest

from promptrollout.api.command import Command, MalformedCommand, new_id, parse_command
from promptrollout.api.names import ANNOTATION_COMMAND

GOOD = {"id": "1", "verb": "promote-full", "rolloutUID": "u", "revision": 3, "attempt": 1, "step": 0, "by": "me"}


def parsed(text: str) -> Command | MalformedCommand | None:
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
def test_malformed_names_the_field(text: str, names: str) -> None:
    problem = parsed(text)
    assert isinstance(problem, MalformedCommand)
    assert problem.problem.startswith(names)
    assert problem.text == text


def test_another_malformed_text_is_another_command() -> None:
    first, again, other = parsed("promote"), parsed("promote"), parsed("abort")
    assert isinstance(first, MalformedCommand)
    assert isinstance(again, MalformedCommand)
    assert isinstance(other, MalformedCommand)
    assert first.id == again.id != other.id


def test_fields_of_a_later_release_are_ignored() -> None:
    assert isinstance(parsed(json.dumps(GOOD | {"colour": "red"})), Command)


def test_ids_differ() -> None:
    assert new_id() != new_id()
