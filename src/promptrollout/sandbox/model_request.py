"""The chat request as the simulated model reads it, refused in the words of OpenAI's error object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson


class RequestError(Exception):
    """A request that the model refuses, in the words of OpenAI's error object."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """The parts of a chat request that the model looks at."""

    model: str
    messages: list[Any]
    instructions: str
    characters: int
    user: str
    stream: bool
    include_usage: bool
    schema: object
    max_tokens: int | None


def parse_chat_request(body: bytes) -> ChatRequest:
    """The request's parts; raises RequestError naming the field, as OpenAI's API does."""
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(400, f"We could not parse the JSON body of your request: {error}") from error
    if not isinstance(request, dict):
        raise RequestError(400, "The body must be a JSON object.")
    model = request.get("model")
    if not isinstance(model, str) or not model:
        raise RequestError(400, "you must provide a model parameter", "model")
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError(400, "'messages' must be a non-empty array.", "messages")
    instructions: list[str] = []
    characters = 0
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RequestError(400, f"messages[{index}] must be an object with a role.", f"messages[{index}].role")
        text = _text(message.get("content"))
        characters += len(text)
        if message["role"] in {"system", "developer"}:
            instructions.append(text)
    if request.get("n", 1) not in (1, None):
        raise RequestError(400, "the simulated model gives one choice; leave n out or set it to 1", "n")
    options = request.get("stream_options")
    return ChatRequest(
        model=model,
        messages=messages,
        instructions="\n".join(instructions),
        characters=characters,
        user=str(request.get("user") or ""),
        stream=request.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        schema=_response_schema(request.get("response_format")),
        max_tokens=_max_tokens(request),
    )


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    return ""


def _response_schema(response_format: object) -> object:
    if isinstance(response_format, dict) and isinstance(response_format.get("json_schema"), dict):
        return response_format["json_schema"].get("schema")
    return None


def _max_tokens(request: dict[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = request.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise RequestError(400, f"{name} must be an integer of at least 1.", name)
        return value
    return None
