"""What pydantic finds wrong is told by field, with the fix."""

from typing import Annotated

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from promptrollout.api.invalid import first_problem, problems


class Daily(BaseModel):
    mean: Annotated[float, Field(gt=0)]


class Plan(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    rate: Annotated[float, Field(gt=0)] | Daily = 1.0


def told(**fields: object) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        Plan.model_validate(fields)
    assert first_problem(caught.value) == next(problems(caught.value))
    return list(problems(caught.value))


def test_what_is_missing_and_what_is_unknown() -> None:
    assert told(nmae="x") == ["name: required: add it", "nmae: unknown field: remove it or correct its name"]


def test_the_branches_of_a_union_are_no_fields() -> None:
    found = told(name="x", rate={"mean": -1})
    assert found == ["rate: Input should be a valid number", "rate.mean: Input should be greater than 0"]


def test_a_whole_that_is_wrong_has_no_path() -> None:
    with pytest.raises(ValidationError) as caught:
        Plan.model_validate_json("[]")
    assert first_problem(caught.value) == "Input should be an object"
