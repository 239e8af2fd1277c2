"""Every example is accepted by a real API server, as it is written."""

from pathlib import Path

import pytest
import yaml

from promptrollout.sandbox.sandbox import Sandbox
from tests.integration.chart import install_all_but_the_operator
from tests.integration.cluster import Kubectl

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(
    file
    for file in EXAMPLES.rglob("*.yaml")
    if any(
        str((each or {}).get("apiVersion", "")).startswith("promptrollout.dev/")
        for each in yaml.safe_load_all(file.read_text())
    )
)


def test_there_are_examples() -> None:
    assert len(FILES) >= 9


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(EXAMPLES)))
def test_example_is_accepted(sandbox: Sandbox, kubectl: Kubectl, file: Path) -> None:
    install_all_but_the_operator(sandbox.kubeconfig)
    bodies = [body for body in yaml.safe_load_all(file.read_text()) if body and body["kind"] != "Namespace"]
    for body in bodies:
        body["metadata"].pop("namespace", None)
    text = yaml.safe_dump_all(bodies)
    # strict: a field that the schema does not know is an error, not a warning
    kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text)
