"""A request as the simulated model reads it, in any of its APIs, refused by naming the field as theirs do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson


class RequestError(Exception):
    """A request that the model refuses."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """The parts of a request that the model looks at."""

    model: str
    messages: list[Any]
    """What the draws depend on, whatever the API calls it."""
    instructions: str
    """The system and developer messages, joined by newlines."""
    characters: int
    user: str
    stream: bool = False
    include_usage: bool = False
    schema: object = None
    max_tokens: int | None = None
    tools: frozenset[str] = frozenset()
    """Names of the functions that may be called; empty if the last message has a result."""
    dimensions: int = 8
    base64: bool = False


def parse_chat(body: bytes) -> ModelRequest:
    """A request of OpenAI's chat API. Raises RequestError."""
    request = _object(body)
    model = _model(request)
    messages = _messages(request.get("messages"), "messages")
    if request.get("n", 1) not in (1, None):
        raise RequestError(400, "the simulated model gives one choice; leave n out or set it to 1", "n")
    options = request.get("stream_options")
    asked = request.get("response_format")
    schema = asked.get("json_schema") if isinstance(asked, dict) else None
    tools = [tool.get("function") for tool in _objects(request.get("tools"))]
    return ModelRequest(
        model=model,
        messages=messages,
        instructions=_instructions(messages),
        characters=_characters(messages),
        user=str(request.get("user") or ""),
        stream=request.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        schema=schema.get("schema") if isinstance(schema, dict) else None,
        max_tokens=_max_tokens(request, "max_completion_tokens", "max_tokens"),
        tools=frozenset() if messages[-1]["role"] == "tool" else _names(tools),
    )


def parse_responses(body: bytes) -> ModelRequest:
    """A request of OpenAI's Responses API. Raises RequestError."""
    request = _object(body)
    model = _model(request)
    content = request.get("input")
    if isinstance(content, str) and content:
        items: list[Any] = [{"role": "user", "content": content}]
    elif isinstance(content, list) and content:
        items = content
    else:
        raise RequestError(400, "'input' must be a text or a non-empty array.", "input")
    for index, item in enumerate(items):
        if not isinstance(item, dict) or not (isinstance(item.get("role"), str) or isinstance(item.get("type"), str)):
            raise RequestError(400, f"input[{index}] must be an object with a role or a type.", f"input[{index}]")
    instructions = request.get("instructions")
    if instructions is not None and not isinstance(instructions, str):
        raise RequestError(400, "'instructions' must be a text.", "instructions")
    text = request.get("text")
    asked = text.get("format") if isinstance(text, dict) else None
    called = items[-1].get("type") == "function_call_output"
    return ModelRequest(
        model=model,
        messages=[instructions, *items],
        instructions="\n".join(part for part in (instructions, _instructions(items)) if part),
        characters=_characters(items) + len(instructions or ""),
        user=str(request.get("user") or ""),
        stream=request.get("stream") is True,
        schema=asked.get("schema") if isinstance(asked, dict) else None,
        max_tokens=_max_tokens(request, "max_output_tokens"),
        tools=frozenset() if called else _names(request.get("tools")),
    )


def parse_messages(body: bytes) -> ModelRequest:
    """A request of Anthropic's Messages API. Raises RequestError."""
    request = _object(body)
    model = _model(request)
    messages = _messages(request.get("messages"), "messages")
    for index, message in enumerate(messages):
        if message["role"] not in {"user", "assistant"}:
            path = f"messages[{index}].role"
            raise RequestError(400, f"{path}: must be user or assistant, not {message['role']!r}", path)
    max_tokens = _max_tokens(request, "max_tokens")
    if max_tokens is None:
        raise RequestError(400, "max_tokens: Field required", "max_tokens")
    for name in ("response_format", "stream_options", "n", "user"):
        if name in request:
            raise RequestError(400, f"{name}: Extra inputs are not permitted", name)
    metadata = request.get("metadata")
    system = _text(request.get("system"))
    config = request.get("output_config")
    asked = config.get("format") if isinstance(config, dict) else None
    last = messages[-1]["content"]
    called = isinstance(last, list) and any(block.get("type") == "tool_result" for block in _objects(last))
    return ModelRequest(
        model=model,
        messages=[system, *messages],
        instructions=system,
        characters=_characters(messages) + len(system),
        user=str((metadata.get("user_id") if isinstance(metadata, dict) else None) or ""),
        stream=request.get("stream") is True,
        schema=asked.get("schema") if isinstance(asked, dict) else None,
        max_tokens=max_tokens,
        tools=frozenset() if called else _names(request.get("tools")),
    )


def parse_embeddings(body: bytes) -> ModelRequest:
    """A request of OpenAI's embeddings API. Raises RequestError."""
    request = _object(body)
    model = _model(request)
    content = request.get("input")
    texts = content if isinstance(content, list) else [content]
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise RequestError(400, "'input' must be a text or a non-empty array of texts.", "input")
    dimensions = request.get("dimensions", 8)
    if isinstance(dimensions, bool) or not isinstance(dimensions, int) or not 1 <= dimensions <= 4096:
        raise RequestError(400, "dimensions must be an integer from 1 to 4096.", "dimensions")
    return ModelRequest(
        model=model,
        messages=texts,
        instructions="",
        characters=sum(map(len, texts)),
        user=str(request.get("user") or ""),
        dimensions=dimensions,
        base64=request.get("encoding_format") == "base64",
    )


def _object(body: bytes) -> dict[str, Any]:
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(400, f"We could not parse the JSON body of your request: {error}") from error
    if not isinstance(request, dict):
        raise RequestError(400, "The body must be a JSON object.")
    return request


def _model(request: dict[str, Any]) -> str:
    model = request.get("model")
    if not isinstance(model, str) or not model:
        raise RequestError(400, "you must provide a model parameter", "model")
    return model


def _messages(messages: object, name: str) -> list[Any]:
    if not isinstance(messages, list) or not messages:
        raise RequestError(400, f"'{name}' must be a non-empty array.", name)
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RequestError(400, f"{name}[{index}] must be an object with a role.", f"{name}[{index}].role")
    return messages


def _instructions(messages: list[Any]) -> str:
    return "\n".join(
        _text(message.get("content")) for message in messages if message.get("role") in {"system", "developer"}
    )


def _characters(messages: list[Any]) -> int:
    return sum(len(_text(message.get("content"))) for message in messages)


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in _objects(content) if isinstance(part.get("text"), str))


def _objects(values: object) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _names(tools: object) -> frozenset[str]:
    return frozenset(tool["name"] for tool in _objects(tools) if isinstance(tool.get("name"), str))


def _max_tokens(request: dict[str, Any], *names: str) -> int | None:
    for name in names:
        value = request.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise RequestError(400, f"{name} must be an integer of at least 1.", name)
        return value
    return None
