"""docs/reference/metrics.md: what gateways and the operator export."""

import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from promptrollout.cli.reference.markdown import HEAD
from promptrollout.engine.objectives.signals import SIGNALS
from promptrollout.gateway.process import Gateway, Settings
from promptrollout.gateway.server.metrics_page import exposition
from promptrollout.operator.cluster.metrics import Metrics

OF_THE_LIBRARY: Final = ("python_", "process_")
"""Metrics that prometheus_client adds, and documents."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One exported metric family."""

    name: str
    type: str
    labels: tuple[str, ...]
    help: str


async def gateway_metrics() -> list[Metric]:
    """What a gateway's page has: a pod's, which serves a rollout with a canary and objectives on everything."""
    with tempfile.TemporaryDirectory() as folder:
        gateway = Gateway(Settings("default", "default", "pod", state_dir=Path(folder)))
        await gateway.registry.apply("support", _delivery())
        if problems := list(gateway.registry.not_loaded()):
            raise AssertionError(problems)
        gateway.counters.rejected["invalid_json"] += 1
        state = replace(
            gateway.state(), retries={"openai": 0}, providers_down=("openai",), caller_keys=0, api_contact_at=0.0
        )
        page = b"".join([piece async for piece in exposition(gateway.counters, state)]).decode()
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.M))
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", page, re.M))
    labels: dict[str, dict[str, None]] = defaultdict(dict)
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            name = next(name for name in (sample.name, _stem(sample.name), family.name) if name in types)
            labels[name] |= dict.fromkeys(sample.labels)
    return [
        Metric(name, types[name], tuple(labels[name]), helps[name])
        for name in sorted(types)
        if not name.startswith(OF_THE_LIBRARY)
    ]


def _stem(name: str) -> str:
    return re.sub(r"_(bucket|sum|count)$", "", name)


def _delivery() -> dict[str, Any]:
    """Of a rollout in mid-canary that every exported signal is measured of."""
    shards = {counter.metric for signal in SIGNALS.values() for _, counter in signal.shard_counters}

    def arm(digit: str) -> dict[str, Any]:
        prompt = {
            "providerRef": {"name": "openai"},
            "model": "model",
            "messages": [{"role": "system", "content": "Answer in JSON."}],
            "outputSchema": {"type": "object"},
        }
        price = {"model": "model", "inputPerMillionUsd": "1", "outputPerMillionUsd": "1"}
        provider = {"name": "openai", "baseURL": "https://model.example/v1", "price": price}
        digest = f"sha256:{digit * 64}"
        return {"version": f"support-{digit * 10}", "digest": digest, "prompt": prompt, "provider": provider}

    return {
        "formatVersion": 1,
        "gateway": "default",
        "rolloutUID": "uid",
        "sequence": 1,
        "weight": 10,
        "salt": "salt",
        "stable": arm("a"),
        "canary": arm("b"),
        "latencyEdgesSeconds": ["1"],
        "scores": ["helpful"],
        "shardMetrics": sorted(shards),
    }


def operator_metrics() -> list[Metric]:
    """What the operator registers."""
    registered = [each for each in vars(Metrics()).values() if isinstance(each, MetricWrapperBase)]
    found = []
    for metric in registered:
        (family,) = metric.describe()
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found.append(Metric(name, family.type, metric._labelnames, family.documentation))
    return sorted(found, key=lambda metric: metric.name)


def metrics_page(gateway: Iterable[Metric], operator: Iterable[Metric]) -> str:
    """Tables of all metrics, by what they are of."""
    of_pod, of_versions, of_shards = list[Metric](), list[Metric](), list[Metric]()
    for metric in gateway:
        labels = metric.labels
        (of_shards if "shard" in labels else of_versions if "variant" in labels else of_pod).append(metric)
    common = tuple(dict.fromkeys(of_versions[0].labels))
    lines = [
        HEAD,
        "# Metrics",
        "",
        "What exactly a gateway counts, and under which version: [what is counted](what-is-counted.md).",
        "How to scrape it: [install](../get-started/install.md#let-prometheus-find-the-gateways).",
        "Both processes also export the `process_*` metrics of prometheus_client, gateways its `python_*` too.",
        "",
        "## Gateway: versions",
        "",
        f"All have the labels {', '.join(f'`{label}`' for label in common)}; the table lists further ones.",
        "",
        *_table(of_versions, common),
        "## Gateway: shards",
        "",
        "The same labels, and `shard`. `promptrollout_shard_X` is `promptrollout_X` by groups of users, exported",
        "while a canary is loaded if an objective needs it.",
        "",
        *_table(of_shards, (*common, "shard")),
        "## Gateway: pods and rollouts",
        "",
        *_table(of_pod),
        "## Operator",
        "",
        *_table(operator),
    ]
    return "\n".join(lines)


def _table(metrics: Iterable[Metric], known: tuple[str, ...] = ()) -> Iterator[str]:
    yield from ("| metric | type | labels | meaning |", "| -- | -- | -- | -- |")
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels if label not in known)
        yield f"| `{metric.name}` | {metric.type} | {labels} | {metric.help} |"
    yield ""
