"""What the API server would refuse, found without one: the CRDs' own schemas, and their CEL rules said in Python."""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from promptrollout.api.base_url import BASE_URL_PROBLEM, base_url_problem
from promptrollout.api.crds import KINDS, PRESERVE, RULES, kind_schema
from promptrollout.api.provider import RESERVED_HEADERS
from promptrollout.api.slo import QUERIES_SELECT_ARM, VALUE_SELECTS_ARM

Schema = Mapping[str, Any]
Path = tuple[str | int, ...]

TYPES: Final[dict[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
}
WRITTEN: Final = {
    "string": "; write a text",
    "integer": "; write a whole number",
    "number": "; write a number",
    "boolean": "; write true or false",
    "object": "; write its fields as `name: value`",
    "array": "; write a list, with a hyphen before each item",
}
"""The fix for a value of a wrong type, by the right one."""
METADATA: Final = frozenset(
    (
        "annotations",
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generateName",
        "generation",
        "labels",
        "managedFields",
        "name",
        "namespace",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
        "uid",
    )
)
MAX_MESSAGES_LENGTH: Final = 196_608
SECONDS: Final = ("Latency", "TimeToFirstToken")
MEANS: Final = (
    *("CostPerRequest", "CostPerAction", "CallsPerAction", "ErrorsPerAction", "TokensPerRequest"),
    *("JudgeScore", "Score", "Custom"),
)


class Problem(NamedTuple):
    """`path` leads to the field; `reason` also says what to do."""

    path: Path
    reason: str


SCHEMAS: Final[dict[str, Schema]] = {}
"""By kind; filled on first use."""


def schema_of(kind: str) -> Schema | None:
    """The kind's structural schema; None if it is not ours."""
    if not SCHEMAS:
        SCHEMAS.update({each.kind_name: kind_schema(each) for each in KINDS})
    return SCHEMAS.get(kind)


def schema_problems(kind: str, manifest: Mapping[str, Any]) -> list[Problem]:
    """Violations of the schema and the rules of `kind`. The status is not checked."""
    schema = schema_of(kind)
    if schema is None:
        return [Problem(("kind",), f"{kind} is unknown; {_nearest(kind, SCHEMAS)}")]
    found = list(_metadata(manifest.get("metadata"), schema["properties"]["metadata"]["properties"]["name"]))
    shape = {key: value for key, value in schema.items() if key != "properties"}
    shape["properties"] = {k: v for k, v in schema["properties"].items() if k not in ("metadata", "status")}
    body = {key: value for key, value in manifest.items() if key not in ("metadata", "status")}
    return found + list(_walk(body, shape, ()))


def written(path: Path) -> str:
    """`spec.steps[0].weight`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _metadata(metadata: Any, name_schema: Schema) -> Iterator[Problem]:
    if not isinstance(metadata, dict):
        wrong = "is missing; add metadata.name" if metadata is None else _wrong_type(metadata, "object")
        yield Problem(("metadata",), wrong)
        return
    for key in metadata:
        if key not in METADATA:
            yield Problem(("metadata", key), f"unknown field; {_nearest(str(key), METADATA)}")
    if metadata.get("name") is None:
        if not metadata.get("generateName"):
            yield Problem(("metadata", "name"), "is missing; add it")
        return
    yield from _walk(metadata["name"], name_schema, ("metadata", "name"))
    for group in ("labels", "annotations"):
        texts = metadata.get(group) or {}
        if not isinstance(texts, dict):
            yield Problem(("metadata", group), _wrong_type(texts, "object"))
            continue
        for key, value in texts.items():
            if not isinstance(value, str):
                yield Problem(("metadata", group, key), f"must be a string; write {_quoted(value)}")


def _walk(value: Any, schema: Schema, path: Path) -> Iterator[Problem]:
    wanted = schema.get("type")
    if wanted and not _is(value, wanted):
        yield Problem(path, _wrong_type(value, wanted))
        return
    if (reason := _out_of_bounds(value, schema)) is not None:
        yield Problem(path, reason)
        return
    before = list(_children(value, schema, path))
    yield from before
    if not before:  # as the API server: rules see only what has the right shape
        for rule in schema.get(RULES, ()):
            holds = CEL.get(rule["message"])
            if holds is not None and not holds(value):
                yield Problem((*path, *_culprit(rule["message"], value)), rule["message"])


def _children(value: Any, schema: Schema, path: Path) -> Iterator[Problem]:
    if isinstance(value, dict):
        properties: Schema = schema.get("properties", {})
        extra = schema.get("additionalProperties")
        for key in schema.get("required", ()):
            if key not in value:
                yield Problem((*path, key), "is missing; add it")
        for key, item in value.items():
            if key in properties:
                yield from _walk(item, properties[key], (*path, key))
            elif isinstance(extra, dict):
                yield from _walk(item, extra, (*path, key))
            elif not schema.get(PRESERVE):
                yield Problem((*path, key), f"unknown field; {_nearest(str(key), properties)}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _walk(item, schema.get("items", {}), (*path, index))
        keys = schema.get("x-kubernetes-list-map-keys", ())
        seen: set[tuple[Any, ...]] = set()
        for index, item in enumerate(value):
            if not keys or not isinstance(item, dict):
                continue
            identity = tuple(str(item.get(key)) for key in keys)
            if identity in seen:
                yield Problem((*path, index, keys[0]), f"{identity[0]} is there twice; rename or remove one")
            seen.add(identity)


def _is(value: Any, wanted: str) -> bool:
    if isinstance(value, bool) and wanted != "boolean":
        return False
    return isinstance(value, TYPES[wanted]) or (wanted == "integer" and isinstance(value, float) and value.is_integer())


def _wrong_type(value: Any, wanted: str) -> str:
    if value is None:
        return "is null; give it a value or leave it out"
    given = next(
        (name for name in ("boolean", "integer", "number", "string", "object", "array") if _is(value, name)), "?"
    )
    fix = f"; write {_quoted(value)}" if wanted == "string" and given in ("boolean", "integer", "number") else ""
    if wanted in ("integer", "number", "boolean") and given == "string":
        fix = "; write it without quotes"
    return f"must be of type {wanted}, not {given}{fix or WRITTEN[wanted]}"


def _out_of_bounds(value: Any, schema: Schema) -> str | None:
    """The first bound of this very value that does not hold."""
    if "enum" in schema and value not in schema["enum"]:
        choices = [str(choice) for choice in schema["enum"]]
        return f"{str(value)!r} is not supported; {_nearest(str(value), choices)}"
    if isinstance(value, str):
        if len(value) < schema.get("minLength", 0):
            return "is empty; give it a value"
        if len(value) > schema.get("maxLength", len(value)):
            return f"has {len(value)} characters, at most {schema['maxLength']} are allowed; shorten it"
        if "pattern" in schema and not re.search(schema["pattern"], value):
            return f"{value!r} does not match {schema['pattern']}; {_example(schema['pattern'])}"
    elif isinstance(value, int | float) and not isinstance(value, bool):
        low, high = schema.get("minimum"), schema.get("maximum")
        if (low is not None and value < low) or (high is not None and value > high):
            bounds = f"from {low} to {high}"
            if low is None or high is None:
                bounds = f"of at least {low}" if high is None else f"of at most {high}"
            return f"{value} is out of range; choose a value {bounds}"
    elif isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            return f"has {len(value)} items, at least {schema['minItems']} is needed; add some"
        if len(value) > schema.get("maxItems", len(value)):
            return f"has {len(value)} items, at most {schema['maxItems']} are allowed; remove some"
    elif isinstance(value, dict) and len(value) > schema.get("maxProperties", len(value)):
        return f"has {len(value)} entries, at most {schema['maxProperties']} are allowed; remove some"
    return None


def _nearest(word: str, known: Any) -> str:
    """A fix for a misspelt word: the nearest that exists, first of all one that it begins; or else all of them."""
    choices = sorted(str(each) for each in known)
    lowered = {each.lower(): each for each in choices}
    begun = [each for each in lowered if each.startswith(word.lower()) and len(word) >= len(each) / 2]
    if begun:
        return f"did you mean {lowered[min(begun, key=len)]}?"
    close = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    if close:
        return f"did you mean {lowered[close[0]]}?"
    return f"supported: {', '.join(choices)}" if choices else "remove it"


def _quoted(value: Any) -> str:
    return f'"{str(value).lower()}"' if isinstance(value, bool) else f'"{value}"'


def _example(pattern: str) -> str:
    if pattern.startswith(("^[0-9]{1,12}", "^-?[0-9]{1,12}")):
        return 'write a decimal number as a string, for example "0.02"'
    if pattern.startswith("^https?://"):
        return "write it as https://host/v1, without a slash at the end"
    if pattern.startswith("^[a-zA-Z_:]"):
        return (
            "write a metric with its label matchers, such as "
            'failed_total{version="{{ version }}", variant="{{ variant }}"}, and no function'
        )
    if pattern.startswith("^[a-z0-9]("):
        return "use lowercase letters, digits and hyphens"
    if pattern == "^[A-Za-z0-9-]+$":
        return "use letters, digits and hyphens, as in the name of a header"
    return "see docs/reference/objects.md"


# ---------------------------------------------------------------- the CEL rules, by their message


def _weights(steps: list[dict[str, Any]]) -> list[int]:
    return [step["weight"] for step in steps if "weight" in step]


def _mode_is_none(analysis: dict[str, Any]) -> bool:
    return analysis.get("mode") == "None"


def _objectives(analysis: dict[str, Any]) -> int:
    return len(analysis.get("objectives", ())) + len(analysis.get("sloRefs", ()))


def _share(objective: dict[str, Any], field: str, below: float) -> bool:
    return field not in objective or 0.0 < float(objective[field]) < below


def _less_is_worse(objective: dict[str, Any]) -> bool:
    signal, direction = objective["signal"], objective.get("direction")
    if signal == "Score":
        return direction != "LowerIsBetter"
    return signal in ("JudgeScore", "CacheHitRate") or (signal == "Custom" and direction == "HigherIsBetter")


def _selects_arm(query: str) -> bool:
    return all(re.search(rf"\{{\{{ *{name} *\}}\}}", query) for name in ("version", "variant"))


def _culprit(message: str, value: Any) -> Path:
    """Which of several queries a rule is about."""
    if message == VALUE_SELECTS_ARM:
        return ("value",)
    if message == QUERIES_SELECT_ARM:
        return next(((name,) for name, query in value.items() if not _selects_arm(query)), ())
    return ()


def _messages_length(prompt: dict[str, Any]) -> int:
    return sum(len(message.get("content", "")) for message in prompt["messages"])


CEL: Final[dict[str, Callable[[Any], bool]]] = {
    # PromptRollout
    "set exactly one of template (the prompt itself) and versionRef (a PromptVersion)": lambda s: (
        ("template" in s) != ("versionRef" in s)
    ),
    "stickiness.header belongs to by: Header, which needs it": lambda s: (
        "stickiness" not in s or (s["stickiness"].get("by", "User") == "Header") == ("header" in s["stickiness"])
    ),
    "reporting belongs to evidenceSource: Reported; set that, or remove spec.reporting": lambda s: (
        "reporting" not in s or s.get("evidenceSource") == "Reported"
    ),
    "a match names either header or baggage": lambda s: ("header" in s) != ("baggage" in s),
    "weights must grow strictly from step to step": lambda s: _weights(s) == sorted(set(_weights(s))),
    "at least one step needs a weight": lambda s: bool(_weights(s)),
    "a step has either weight or pause": lambda s: ("weight" in s) != ("pause" in s),
    "minDurationSeconds belongs to a weight": lambda s: "minDurationSeconds" not in s or "weight" in s,
    "holdbackPercent must not exceed 100 minus the last weight: lower it, or set it to 0": lambda s: (
        not s.get("holdbackPercent") or max(_weights(s["steps"]), default=0) + s["holdbackPercent"] <= 100
    ),
    "holdbackPercent needs bakeSeconds above 0: raise bakeSeconds, or set holdbackPercent to 0": lambda s: (
        not s.get("holdbackPercent") or s.get("bakeSeconds", 1) > 0
    ),
    "mode None excludes objectives and sloRefs": lambda s: not _mode_is_none(s) or _objectives(s) == 0,
    "declare objectives or sloRefs, or say mode: None": lambda s: _mode_is_none(s) or _objectives(s) > 0,
    # PromptGateway
    "this mode needs keysSecretRef: the Secret with the hashes of the callers' keys": lambda s: (
        s.get("mode") not in ("Keys", "KeysAndServiceAccounts") or "keysSecretRef" in s
    ),
    "limits.requestsPerMinutePerKey needs auth.mode: without it callers cannot be told apart": lambda s: (
        "requestsPerMinutePerKey" not in s.get("limits", ()) or s.get("auth", {}).get("mode", "None") != "None"
    ),
    # an objective
    "an objective needs a bound: set max (min where less is worse), versusStable or both": lambda s: (
        "max" in s or "min" in s or "versusStable" in s
    ),
    "thresholdSeconds and quantile belong to the signals Latency and TimeToFirstToken": lambda s: (
        s["signal"] in SECONDS or not {"thresholdSeconds", "quantile"} & s.keys()
    ),
    "Latency and TimeToFirstToken need exactly one of thresholdSeconds and quantile": lambda s: (
        s["signal"] not in SECONDS or ("thresholdSeconds" in s) != ("quantile" in s)
    ),
    "quantile needs max, in seconds": lambda s: "quantile" not in s or "max" in s,
    'quantile is a share above 0 and below 1, for example "0.95"': lambda s: _share(s, "quantile", 1.0),
    'max of a rate is a share between 0 and 1, for example "0.02" for 2 %': lambda s: (
        s["signal"] in MEANS or "quantile" in s or _share(s, "max", 1.0)
    ),
    'max of a ratio is a share between 0 and 1, for example "0.02" for 2 %': lambda s: (
        "ratio" not in s.get("custom", ()) or _share(s, "max", 1.0)
    ),
    "max must be above 0": lambda s: _share(s, "max", float("inf")),
    "min must be above 0": lambda s: _share(s, "min", float("inf")),
    "min is for signals where less is worse: JudgeScore, Score, CacheHitRate, Custom with HigherIsBetter": lambda s: (
        "min" not in s or _less_is_worse(s)
    ),
    "where less is worse, the absolute bound is min, not max": lambda s: "max" not in s or not _less_is_worse(s),
    "min of JudgeScore is from 1 to below 5": lambda s: (
        s["signal"] != "JudgeScore" or "min" not in s or 1.0 <= float(s["min"]) < 5.0
    ),
    "versusStable needs maxIncreasePercent: of this signal, more is worse": lambda s: (
        "versusStable" not in s or _less_is_worse(s) or "maxIncreasePercent" in s["versusStable"]
    ),
    "versusStable needs maxDecrease, in the signal's unit: of this signal, less is worse": lambda s: (
        "versusStable" not in s
        or not _less_is_worse(s)
        or "maxDecrease" in s["versusStable"]
        or (s["signal"] in ("JudgeScore", "CacheHitRate") and "maxIncreasePercent" not in s["versusStable"])
    ),
    "dimension belongs to signal JudgeScore, which needs it": lambda s: (
        (s["signal"] == "JudgeScore") == ("dimension" in s)
    ),
    "score belongs to signal Score, which needs it": lambda s: (s["signal"] == "Score") == ("score" in s),
    "custom belongs to signal Custom, which needs it": lambda s: (s["signal"] == "Custom") == ("custom" in s),
    "direction belongs to signal Score, and to Custom with mean or value": lambda s: (
        "direction" not in s or s["signal"] == "Score" or ("custom" in s and "ratio" not in s["custom"])
    ),
    "thresholdSeconds must be above 0": lambda s: _share(s, "thresholdSeconds", float("inf")),
    "negligibleRate is a share above 0 and below 0.5": lambda s: _share(s, "negligibleRate", 0.5),
    "rollbackAbovePercent must not exceed maxIncreasePercent": lambda s: (
        "rollbackAbovePercent" not in s or s["rollbackAbovePercent"] <= s.get("maxIncreasePercent", -1)
    ),
    "set maxIncreasePercent where more is worse, maxDecrease where less is worse, not both": (
        lambda s: "maxIncreasePercent" not in s or not {"maxDecrease", "rollbackAboveDecrease"} & s.keys()
    ),
    "rollbackAboveDecrease must not exceed maxDecrease": lambda s: (
        float(s.get("rollbackAboveDecrease", 0)) <= float(s.get("maxDecrease", 0.10))
    ),
    "maxDecrease must be above 0": lambda s: _share(s, "maxDecrease", float("inf")),
    "custom has exactly one of ratio, mean and value": lambda s: len({"ratio", "mean", "value"} & s.keys()) == 1,
    QUERIES_SELECT_ARM: lambda s: all(map(_selects_arm, s.values())),
    VALUE_SELECTS_ARM: lambda s: "value" not in s or _selects_arm(s["value"]),
    # a prompt
    "a message has either role and content, or placeholder": lambda s: ("placeholder" in s) != ("role" in s),
    "role and content go together": lambda s: ("role" in s) == ("content" in s),
    "placeholder: history may appear at most once": lambda s: sum("placeholder" in m for m in s["messages"]) <= 1,
    "all messages together may have at most 192 KiB": lambda s: _messages_length(s) <= MAX_MESSAGES_LENGTH,
    # a provider
    BASE_URL_PROBLEM: lambda s: base_url_problem(s) is None,
    "this header belongs to the connection, or carries credentials: use apiKeySecretRef and auth for a key": lambda s: (
        s["name"].lower() not in RESERVED_HEADERS
    ),
    "a CA comes from caConfigMapRef or from caSecretRef, not from both": lambda s: (
        not {"caConfigMapRef", "caSecretRef"} <= s.keys()
    ),
}
