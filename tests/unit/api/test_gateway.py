"""A PromptGateway's spec: what no schema can bound."""

import os
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from promptrollout.api.gateway import MAX_CALLERS_BYTES, GatewaySpec
from promptrollout.api.invalid import first_problem


def callers(entries: int, rollouts: int) -> dict[str, Any]:
    names = [f"rollout-{number:022}" for number in range(rollouts)]
    each = [{"namespace": f"team-{number}", "rollouts": names} for number in range(entries)]
    return {"auth": {"mode": "ServiceAccounts", "serviceAccounts": each}}


def test_callers_that_no_process_could_be_given_are_refused() -> None:
    with pytest.raises(ValidationError) as refused:
        GatewaySpec.model_validate(callers(64, 64))
    problem = first_problem(refused.value)
    assert problem.startswith("auth.serviceAccounts: ")
    assert "list fewer entries or fewer `rollouts`" in problem


def test_a_process_starts_with_as_many_as_are_accepted() -> None:
    GatewaySpec.model_validate(callers(40, 64))
    environment = {**os.environ, "CALLERS": "x" * MAX_CALLERS_BYTES}
    assert subprocess.run([sys.executable, "-c", ""], env=environment, check=False).returncode == 0
