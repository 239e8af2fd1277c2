"""A person's verb, as it travels in one annotation of a PromptRollout."""

import hashlib
import json
import uuid
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from promptrollout.api.invalid import first_problem
from promptrollout.api.meta import Model
from promptrollout.api.names import ANNOTATION_COMMAND

Verb = Literal["promote", "promote-full", "abort", "retry", "pause", "resume", "undo"]


class Command(Model):
    """One verb, bound to what its author was looking at: a replay or a stale one is refused."""

    id: Annotated[str, Field(min_length=1, max_length=64)]
    verb: Verb
    rollout_uid: Annotated[str, Field(alias="rolloutUID", max_length=64)]
    revision: int
    attempt: int
    step: int
    by: Annotated[str, Field(max_length=128)] = ""
    reason: Annotated[str, Field(max_length=512)] = ""

    def to_annotation(self) -> dict[str, str]:
        return {ANNOTATION_COMMAND: json.dumps(self.dump(), sort_keys=True)}


def new_id() -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class MalformedCommand:
    """An annotation that is no command."""

    text: str
    problem: str
    """The field and the reason."""

    @property
    def id(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()[:32]


def parse_command(annotations: dict[str, str]) -> Command | MalformedCommand | None:
    """The command of a rollout's annotations; None without one."""
    text = annotations.get(ANNOTATION_COMMAND)
    if not text:
        return None
    try:
        return Command.model_validate_json(text)
    except ValidationError as error:
        return MalformedCommand(text, first_problem(error))
