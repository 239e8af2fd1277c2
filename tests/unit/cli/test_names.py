"""The names that dashboards, alerts and scripts of users hold on to: metrics, fields of status, reasons.

A name that goes away, or a metric that loses a label, breaks somebody's alert without an error. To change one is a
decision: change the golden file with it, and say so in CHANGELOG.md.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from promptrollout.cli.reference.metrics import Metric, gateway_metrics, operator_metrics

ROOT = Path(__file__).parents[3]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "names.json").read_text())


def listed(metrics: list[Metric]) -> dict[str, str]:
    return {metric.name: " ".join((metric.type, *sorted(metric.labels))) for metric in metrics}


def test_metrics_keep_their_names_types_and_labels() -> None:
    assert listed(asyncio.run(gateway_metrics())) == GOLDEN["gatewayMetrics"]
    assert listed(operator_metrics()) == GOLDEN["operatorMetrics"]


def paths(schema: dict[str, Any], at: str) -> Iterator[str]:
    for name, inner in schema.get("properties", {}).items():
        yield f"{at}.{name}"
        yield from paths(inner, f"{at}.{name}")
    for key, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if isinstance(inner := schema.get(key), dict):
            yield from paths(inner, at + mark)


@pytest.mark.parametrize("kind", GOLDEN["status"])
def test_status_keeps_its_fields(kind: str) -> None:
    (crd,) = (
        found
        for file in (ROOT / "crds").glob("*.yaml")
        if (found := yaml.safe_load(file.read_text()))["spec"]["names"]["kind"] == kind
    )
    (version,) = crd["spec"]["versions"]
    status = version["schema"]["openAPIV3Schema"]["properties"]["status"]
    assert set(paths(status, "status")) >= set(GOLDEN["status"][kind])


def test_decisions_keep_their_reasons() -> None:
    """The page has a row for each reason of the code and for no other: see tests/unit/engine/test_reasons.py."""
    page = (ROOT / "docs" / "reference" / "events.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.M)) >= set(GOLDEN["decisionReasons"])
