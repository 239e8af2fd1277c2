"""What the simulated model answers: draws that depend on the request alone, and texts that fit or break a schema."""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jsonschema_rs
import orjson

from promptrollout.sandbox.model.behaviour import Behaviour, BreakKind, ErrorKind, Outcome, normal

REFUSAL = "I'm sorry, but I can't help with that."
PROSE = "Sure! Here is what I would say: please restart the device and try once more."
_UNIFORMS = struct.Struct(">6Q16x")
_SCALE = 2.0**-64
_DEEPEST = 12


@dataclass(frozen=True, slots=True)
class Draws:
    """Independent uniforms of one request, one per purpose, so that changing one setting moves no other draw."""

    outcome: float
    latency: float
    tokens: float
    quality: float
    kind: float
    cut: float
    request_id: str


class DrawSource:
    """Draws by (seed, rule, user and messages, how often this key came before): never by arrival order across keys.

    Remembers the counts of the last `capacity` keys; a key forgotten starts again from its first draw.
    """

    def __init__(self, seed: int, capacity: int = 200_000) -> None:
        self._seed = seed
        self._capacity = capacity
        self._counts: OrderedDict[bytes, int] = OrderedDict()

    def reset(self) -> None:
        """Start every key's sequence again."""
        self._counts.clear()

    def draw(self, rule: str, user: str, messages: object) -> Draws:
        """The next draws of this key."""
        identity = orjson.dumps([self._seed, rule, user, messages], option=orjson.OPT_SORT_KEYS)
        key = hashlib.blake2b(identity, digest_size=16).digest()
        count = self._counts.pop(key, 0)
        self._counts[key] = count + 1
        if len(self._counts) > self._capacity:
            self._counts.popitem(last=False)
        digest = hashlib.blake2b(key + count.to_bytes(8, "big"), digest_size=64).digest()
        outcome, latency, tokens, quality, kind, cut = (number * _SCALE for number in _UNIFORMS.unpack(digest))
        return Draws(outcome, latency, tokens, quality, kind, cut, request_id=digest[-12:].hex())


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts as the usage block reports them."""

    prompt: int
    completion: int
    cached: int

    def as_openai(self) -> dict[str, Any]:
        """The usage block of OpenAI's API."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        }


@dataclass(frozen=True, slots=True)
class Reply:
    """One request's fate, worked out before anything is sent."""

    outcome: Outcome
    error: ErrorKind | None
    content: str | None
    refusal: str | None
    finish_reason: str
    usage: Usage
    quality: float
    seconds: float
    first_token_seconds: float
    cut_share: float
    request_id: str
    call: str | None = None
    """The function that is called instead of answering."""
    arguments: str = ""

    @property
    def text(self) -> str:
        """What streams: the call's arguments, the refusal or the answer."""
        if self.call is not None:
            return self.arguments
        return self.refusal if self.refusal is not None else self.content or ""


def compose(
    behaviour: Behaviour,
    draws: Draws,
    prompt_characters: int,
    schema: object,
    max_tokens: int | None,
    tools: Collection[str] = (),
) -> Reply:
    """The reply a rule gives to a request with these draws.

    `schema` is what the request wants the answer to fit, or None; `max_tokens` its limit, or None; `tools` the
    functions that may be called.
    """
    outcome, error = behaviour.outcome(draws.outcome)
    content: str | None = good_answer(behaviour, schema)
    refusal = call = None
    arguments = ""
    finish_reason = "stop"
    if outcome is Outcome.CONTRACT_BREAK:
        content = broken_answer(behaviour, draws.kind, schema)
    elif outcome is Outcome.REFUSAL:
        content, refusal = None, REFUSAL
    elif outcome is Outcome.EMPTY:
        content = ""
    elif outcome is Outcome.TRUNCATION:
        assert content is not None
        content, finish_reason = content[: len(content) // 2], "length"
    elif behaviour.tool_call is not None and behaviour.tool_call.name in tools:
        call, arguments = behaviour.tool_call.name, _json(behaviour.tool_call.arguments)
        content, finish_reason = None, "tool_calls"

    completion = _completion_tokens(behaviour, draws, arguments or (REFUSAL if content is None else content))
    if max_tokens is not None and completion > max_tokens:
        # A real model stops at the caller's limit and says so; the text is cut in proportion.
        call = None
        if content is not None:
            content = content[: len(content) * max_tokens // completion]
        completion, finish_reason = max_tokens, "length"
    prompt = behaviour.tokens.prompt
    if prompt is None:
        prompt = max(1, prompt_characters // 4)
    cached = round(prompt * behaviour.tokens.cached_share)
    seconds = behaviour.latency.seconds(draws.latency)
    quality = behaviour.quality.mean + behaviour.quality.spread * normal(draws.quality)
    return Reply(
        outcome=outcome,
        error=error,
        content=content,
        refusal=refusal,
        finish_reason=finish_reason,
        usage=Usage(prompt, completion, cached),
        quality=min(5.0, max(0.0, quality)),
        seconds=seconds,
        first_token_seconds=seconds * behaviour.latency.first_token_share,
        cut_share=draws.cut,
        request_id=draws.request_id,
        call=call,
        arguments=arguments,
    )


def good_answer(behaviour: Behaviour, schema: object) -> str:
    """The answer that keeps the contract: the rule's own, else the smallest instance of the request's schema."""
    if isinstance(behaviour.answer, str):
        return behaviour.answer
    if behaviour.answer is not None:
        return _json(behaviour.answer)
    if isinstance(schema, dict):
        return _instance_text(orjson.dumps(schema))
    return '{"answer":"Please restart the device and try once more."}'


def broken_answer(behaviour: Behaviour, uniform: float, schema: object) -> str:
    """An answer that misses the contract, of one of the rule's kinds; checked against the schema when it is known."""
    kinds = behaviour.contract_break_kinds
    kind = kinds[min(int(uniform * len(kinds)), len(kinds) - 1)]
    good = good_answer(behaviour, schema)
    if kind is BreakKind.CUT_JSON:
        cut = good[: len(good) * 2 // 3]
        return PROSE if _is_json(cut) else cut  # a bare number cut short is still one
    if kind is BreakKind.WRONG_SHAPE:
        wrong = _json({"unexpected": [good]})
        if not isinstance(schema, dict) or not _conforms(orjson.dumps(schema), wrong):
            return wrong
    return PROSE


def minimal_instance(schema: object) -> Any:
    """A small value that fits a JSON schema: required properties only, first branch of anyOf and oneOf.

    Covers what prompts' output schemas use; patterns and `not` are not solved.
    """
    return _instance(schema, schema, 0)


def _instance(schema: object, root: object, depth: int) -> Any:
    if not isinstance(schema, dict) or depth > _DEEPEST:
        return None
    if "const" in schema:
        return schema["const"]
    for keyword in ("enum", "examples"):
        if isinstance(schema.get(keyword), list) and schema[keyword]:
            return schema[keyword][0]
    if "default" in schema:
        return schema["default"]
    if isinstance(schema.get("$ref"), str):
        return _instance(_resolve(schema["$ref"], root), root, depth + 1)
    if isinstance(schema.get("allOf"), list):
        return _instance(_merged(schema, root), root, depth + 1)
    for choice in ("anyOf", "oneOf"):
        if isinstance(schema.get(choice), list) and schema[choice]:
            return _instance(schema[choice][0], root, depth + 1)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0] if kind else None
    if kind == "object" or (kind is None and ("properties" in schema or "required" in schema)):
        properties = schema.get("properties", {})
        return {name: _instance(properties.get(name, {}), root, depth + 1) for name in schema.get("required", [])}
    if kind == "array":
        prefix = [_instance(item, root, depth + 1) for item in schema.get("prefixItems", [])]
        missing = schema.get("minItems", 0) - len(prefix)
        return prefix + [_instance(schema.get("items", {}), root, depth + 1) for _ in range(missing)]
    if kind in {"integer", "number"}:
        return _number(schema, whole=kind == "integer")
    if kind == "boolean":
        return True
    if kind == "null":
        return None
    return _string(schema)


def _string(schema: dict[str, Any]) -> str:
    formats = {
        "date": "2026-01-01",
        "date-time": "2026-01-01T00:00:00Z",
        "email": "someone@example.com",
        "uri": "https://example.com/",
        "uuid": "00000000-0000-4000-8000-000000000000",
    }
    text = formats.get(schema.get("format", ""), "A short answer.")
    text = text.ljust(int(schema.get("minLength", 0)), ".")
    return text[: int(schema.get("maxLength", len(text)))]


def _number(schema: dict[str, Any], whole: bool) -> int | float:
    step = schema.get("multipleOf", 1)
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if low is None:
        value = min(0, high - step) if high is not None else 0
    else:
        value = low if "minimum" in schema else low + step
        if not whole and "exclusiveMinimum" in schema and high is not None and value >= high:
            value = (low + high) / 2
    if (whole or "multipleOf" in schema) and value % step:
        value += step - value % step
    return int(value) if whole else value


def _merged(schema: dict[str, Any], root: object) -> dict[str, Any]:
    merged = {key: value for key, value in schema.items() if key != "allOf"}
    for part in schema["allOf"]:
        if isinstance(part, dict) and isinstance(part.get("$ref"), str):
            part = _resolve(part["$ref"], root)
        if not isinstance(part, dict):
            continue
        for key, value in part.items():
            if key == "properties":
                merged[key] = {**merged.get(key, {}), **value}
            elif key == "required":
                merged[key] = [*merged.get(key, []), *value]
            else:
                merged.setdefault(key, value)
    return merged


def _resolve(reference: str, root: object) -> object:
    node = root
    for part in reference.removeprefix("#").strip("/").split("/"):
        if part:
            node = node.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(node, dict) else None
    return node


@lru_cache(maxsize=256)
def _instance_text(schema: bytes) -> str:
    return _json(minimal_instance(orjson.loads(schema)))


@lru_cache(maxsize=1024)
def _conforms(schema: bytes, text: str) -> bool:
    try:
        return jsonschema_rs.is_valid(orjson.loads(schema), orjson.loads(text))
    except jsonschema_rs.ValidationError:  # the schema itself is invalid: then there is no contract to keep
        return False


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def _completion_tokens(behaviour: Behaviour, draws: Draws, text: str) -> int:
    tokens = behaviour.tokens
    if tokens.completion_mean is None:
        return len(text) // 4 + (1 if text else 0)
    return max(1, round(tokens.completion_mean + tokens.completion_spread * normal(draws.tokens)))


def _json(value: object) -> str:
    return orjson.dumps(value).decode()
