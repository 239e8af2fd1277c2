"""What the API server makes of objectives: each signal with its own fields, and a sentence for what does not belong."""

from typing import Any

import pytest

from promptrollout.sandbox.sandbox import Sandbox
from tests.integration.api import ApiKubectl
from tests.integration.chart import install_all_but_the_operator
from tests.integration.test_objects import Objects
from tests.objectives import REFUSED, TAKEN

Fields = dict[str, Any]


@pytest.fixture(scope="module")
def chart(sandbox: Sandbox) -> None:
    install_all_but_the_operator(sandbox.kubeconfig)


@pytest.fixture
def objects(chart: None, sandbox: Sandbox, shared_namespace: str) -> Objects:
    return Objects(ApiKubectl(sandbox.kubeconfig, shared_namespace))


def slo(*objectives: Fields) -> Fields:
    numbered = [each | {"name": f"it-{number}"} for number, each in enumerate(objectives)]
    kind: Fields = {"apiVersion": "promptrollout.dev/v1alpha1", "kind": "PromptSLO", "metadata": {"name": "quality"}}
    return kind | {"spec": {"objectives": numbered}}


def test_every_signal_is_taken(objects: Objects) -> None:
    all_objectives = list(TAKEN.values())
    for number, start in enumerate(range(0, len(all_objectives), 20)):
        body = slo(*all_objectives[start : start + 20])
        objects.apply(body | {"metadata": {"name": f"quality-{number}"}})


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_belong_is_refused(objects: Objects, name: str) -> None:
    objective, says = REFUSED[name]
    assert says in objects.refusal(slo(objective))
