"""Writes the pages of docs/reference that come from code: fields, metrics and commands.

`python -m promptrollout.cli.reference [ROOT]`, ROOT being the repository (default: the current directory). `make
generate` runs it and then mdformat, `make check` fails if the result differs from what is committed.
"""

import asyncio
import inspect
import json
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import click
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from promptrollout.api.crds import KINDS, PRESERVE, RULES, Schema, kind_schema
from promptrollout.api.meta import CustomResource
from promptrollout.cli.connection import Flags, cluster_command
from promptrollout.cli.main import COMMANDS, main
from promptrollout.engine.objectives.signals import SIGNALS
from promptrollout.gateway.process import Gateway, Settings
from promptrollout.gateway.server.metrics_page import exposition
from promptrollout.operator.cluster.metrics import Metrics

FOLDER: Final = Path("docs/reference")
HEAD: Final = "<!-- Written by `make generate`. Edit the code, not this page. -->\n"
_REFERENCE: Final = {"name", "key"}
"""Fields of what refers to another object: they need no section of their own."""
OF_THE_LIBRARY: Final = ("python_", "process_")
"""Metrics that prometheus_client adds, and documents."""


# ---------------------------------------------------------------- fields


def fields_page(kind: type[CustomResource]) -> str:
    """Every field of a kind: type, bounds, default and meaning, by the schema that the API server checks."""
    schema = kind_schema(kind)
    lines = [HEAD, f"# Fields of {kind.kind_name}", "", prose(schema["description"]), ""]
    names = ", ".join(f"`{name}`" for name in (kind.plural, *kind.short_names))
    lines += [f"With kubectl: {names}. `metadata.name` has at most {kind.max_name_length} characters.", ""]
    shown: dict[str, str] = {}
    for part in ("spec", "status"):
        if part in schema["properties"]:
            lines += _section(part, schema["properties"][part], 2, shown)
    return "\n".join(lines)


def _section(path: str, schema: Schema, level: int, shown: dict[str, str]) -> Iterator[str]:
    """An object's fields, then those of the objects in it. `shown`: sections by their content, to refer to."""
    yield from (f"{'#' * level} `{path}`", "")
    if description := schema.get("description"):
        yield from (prose(description), "")
    required = schema.get("required", ())
    inner: list[tuple[str, Schema]] = []
    for name, field in schema["properties"].items():
        of, suffix = _object_in(field)
        link = ""
        if name == "conditions":
            link = " Their types and reasons: [conditions](../conditions.md)."
        elif of is not None and not set(of["properties"]) <= _REFERENCE:
            content = repr(_bare(of))
            if content not in shown:
                shown[content] = f"{path}.{name}{suffix}"
                inner.append((shown[content], of))
            link = f" See [{shown[content]}](#{anchor(shown[content])})."
        facts = ", ".join([_type(field), *(["required"] if name in required else []), *_bounds(field)])
        yield f"- **`{name}`** ({facts}). {prose(field.get('description', ''))}{link}"
    rules = [rule for rule in schema.get(RULES, ()) if rule.get("message")]
    if rules:
        yield from ("", "The API server also checks:", "")
        yield from (f"- {prose(rule['message'])}" for rule in rules)
    yield ""
    for inner_path, of in inner:
        yield from _section(inner_path, of, min(level + 1, 3), shown)


def _bare(node: Any) -> Any:
    """A schema without what may differ where the same object stands in spec and status: defaults, rules and words."""
    if isinstance(node, dict):
        return {key: _bare(value) for key, value in node.items() if key not in ("default", "description", RULES)}
    return [_bare(each) for each in node] if isinstance(node, list) else node


def _object_in(field: Schema) -> tuple[Schema | None, str]:
    """The object that a field is, is a list of, or maps to; and how a path says so."""
    if "properties" in field:
        return field, ""
    if "items" in field and "properties" in field["items"]:
        return field["items"], "[]"
    values = field.get("additionalProperties")
    if isinstance(values, dict) and "properties" in values:
        return values, ".KEY"
    return None, ""


def _type(field: Schema) -> str:
    if field.get(PRESERVE) and "properties" not in field:
        return "any JSON object" if field.get("type") == "object" else "any JSON"
    if len(field.get("properties", {})) > 0 and set(field["properties"]) <= _REFERENCE:
        return "object of " + " and ".join(code(name) for name in field["properties"])
    match field.get("type"):
        case "array":
            return f"list of {_plural(_type(field['items']))}"
        case "object" if isinstance(values := field.get("additionalProperties"), dict):
            return f"map of {_plural(_type(values))}"
        case kind:
            return str(kind or "any JSON")


def _plural(kind: str) -> str:
    return kind if kind.startswith(("any", "list", "map")) else re.sub("^(string|integer|object|boolean)", r"\1s", kind)


def _bounds(field: Schema) -> Iterator[str]:
    of = field["items"] if field.get("type") == "array" else field
    if "enum" in of:
        yield "one of " + ", ".join(code(str(value)) for value in of["enum"])
    for low, high, unit in (
        ("minimum", "maximum", ""),
        ("minLength", "maxLength", " characters"),
        ("minItems", "maxItems", " items"),
        ("minProperties", "maxProperties", " entries"),
    ):
        schema = of if unit in ("", " characters") else field
        if text := _range(schema.get(low), schema.get(high), unit):
            yield text
    if "format" in of:
        yield f"format `{of['format']}`"
    if "pattern" in of:
        yield f"pattern {code(of['pattern'])}"
    if "default" in field:
        default = field["default"]
        yield f"default {code(default if isinstance(default, str) else json.dumps(default))}"


def _range(low: float | None, high: float | None, unit: str) -> str:
    """`low` 0 says nothing of a length."""
    if high is None:
        return f"at least {low:,}{unit}" if low is not None else ""
    if low is None or (unit and not low):
        return f"at most {high:,}{unit}"
    return f"{low:,} to {high:,}{unit}" if low != high else f"{low:,}{unit}"


# --------------------------------------------------------------- metrics


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


# -------------------------------------------------------------- commands


@click.command()
@cluster_command
async def _any_of_a_cluster(flags: Flags) -> None:
    """Has the options of each command that speaks to a cluster."""


def _records(command: click.Command) -> list[tuple[str, str]]:
    """The options as `--help` lists them."""
    context = click.Context(command)
    found = (option.get_help_record(context) for option in command.get_params(context))
    return [record for record in found if record and record[0].startswith("-") and "--help" not in record[0]]


_CLUSTER_OPTIONS: Final = _records(_any_of_a_cluster)


def commands_page() -> str:
    """Usage, arguments and options of each command, as its `--help` says them."""
    context = click.Context(main, info_name="promptrollout")
    lines = [
        HEAD,
        "# Commands",
        "",
        "`promptrollout`, or `kubectl promptrollout`. How-to: [control a rollout](../how-to/control-a-rollout.md),",
        "[check manifests](../how-to/lint.md), [try rules](../how-to/simulate.md), [sandbox](../how-to/sandbox.md).",
        "A wrong command line is exit code 2, with the usage on standard error.",
        "",
        *(f"- [`{name}`](#promptrollout-{name}): {summary}" for name, _, summary in COMMANDS),
        "",
        "## Cluster options",
        "",
        "Of each command that speaks to a cluster:",
        "",
        *(_option(*record) for record in _CLUSTER_OPTIONS),
        "",
    ]
    for name, _, _ in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None
        lines += _command(command, f"promptrollout {name}", 2)
    return "\n".join(lines)


def _command(command: click.Command, name: str, level: int) -> Iterator[str]:
    context = click.Context(command, info_name=name, terminal_width=10_000)
    yield from (f"{'#' * level} {name}", "", "```sh", context.command.get_usage(context).removeprefix("Usage: "))
    yield from ("```", "")
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        if paragraph.startswith("\b"):
            yield from ("```", paragraph.removeprefix("\b").strip("\n"), "```", "")
        else:
            yield from (prose(paragraph), "")
    records = _records(command)
    yield from (_option(*record) for record in records if record not in _CLUSTER_OPTIONS)
    if any(record in _CLUSTER_OPTIONS for record in records):
        yield "- the [cluster options](#cluster-options)"
    yield ""
    if isinstance(command, click.Group):
        for inner_name in command.list_commands(context):
            inner = command.get_command(context, inner_name)
            assert inner is not None
            yield from _command(inner, f"{name} {inner_name}", level + 1)


def _option(named: str, meaning: str) -> str:
    return f"- {code(named)}: {prose(meaning)}" if meaning else f"- {code(named)}"


# ------------------------------------------------------------------ text


def prose(text: str) -> str:
    """Text of the code as Markdown: nothing of it is markup, but for what stands in backticks."""
    parts = re.split(r"(``?.*?``?)", " ".join(text.split()))
    return "".join(part if at % 2 else re.sub(r"([*<\[\]])", r"\\\1", part) for at, part in enumerate(parts))


def code(text: str) -> str:
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def pages() -> dict[Path, str]:
    """All of them, by their path."""
    found = {FOLDER / "fields" / f"{kind.kind_name.lower()}.md": fields_page(kind) for kind in KINDS}
    found[FOLDER / "metrics.md"] = metrics_page(asyncio.run(gateway_metrics()), operator_metrics())
    found[FOLDER / "commands.md"] = commands_page()
    return found


if __name__ == "__main__":
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    for path, text in pages().items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text.rstrip() + "\n", encoding="utf-8")
