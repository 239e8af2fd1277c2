"""The serving port as an OpenAPI 3.1 document: what the gateway reads and refuses; the rest is forwarded.

Served at `GET /openapi.json`; `python -m promptrollout.gateway.openapi` writes docs/reference/openapi.json. A field
has a type here only if the gateway refuses another one: everything else is between caller and provider.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from promptrollout import __version__
from promptrollout.gateway.openapi import applications
from promptrollout.gateway.openapi.parts import (
    ERROR,
    MESSAGES,
    MESSAGES_ERROR,
    ROLLOUT,
    USER,
    VARIABLES,
    WHAT_ANSWERED,
    Schema,
    answer,
    header,
    in_path,
    json_body,
    ref,
    refusal,
)
from promptrollout.llm.protocols import PROTOCOLS
from promptrollout.llm.protocols.messages import ANTHROPIC_HEADER

PATH: Final = "/openapi.json"
DOCS_COPY: Final = Path("docs/reference/openapi.json")

_STREAM: Final = "text/event-stream"

_STREAMED: Final[Schema] = {"description": "`true` for an answer as server-sent events."}
_CHAT_REQUEST: Final[Schema] = {
    "type": "object",
    "required": ["model"],
    "description": "OpenAI's chat completion request. All other fields are forwarded unchanged.",
    "properties": {
        "model": ref("schemas", "Rollout"),
        "messages": MESSAGES,
        "prompt_variables": VARIABLES,
        "user": USER,
        "stream": _STREAMED,
        "stream_options": {"description": "`include_usage: true` for a last event with the usage."},
        "response_format": {
            "description": "A `json_schema` replaces the version's `outputSchema`; other formats do not."
        },
    },
    "example": {"model": "support", "user": "u1", "messages": [{"role": "user", "content": "Hello"}]},
}
_CHAT_ANSWER: Final[Schema] = {
    "type": "object",
    "required": ["choices"],
    "description": "The provider's chat completion, unchanged.",
    "properties": {"choices": {"type": "array"}},
}
_RESPONSES_REQUEST: Final[Schema] = {
    "type": "object",
    "required": ["model"],
    "description": "OpenAI's request for a response. `background` is refused; all others are forwarded unchanged.",
    "properties": {
        "model": ref("schemas", "Rollout"),
        "input": {
            "type": ["string", "array", "null"],
            "items": {"type": "object", "description": "An item, in any format that the provider supports."},
        },
        "instructions": {"type": ["string", "null"], "description": "Appended to the version's own."},
        "prompt_variables": VARIABLES,
        "user": USER,
        "stream": _STREAMED,
        "text": {"description": "A `json_schema` as its `format` replaces the version's `outputSchema`."},
    },
    "example": {"model": "support", "user": "u1", "input": "Hello"},
}
_RESPONSES_ANSWER: Final[Schema] = {
    "type": "object",
    "required": ["output"],
    "description": "The provider's response, unchanged.",
    "properties": {"output": {"type": "array"}},
}
_MESSAGES_REQUEST: Final[Schema] = {
    "type": "object",
    "required": ["model"],
    "description": "Anthropic's request for a message. All other fields are forwarded unchanged; if the "
    "version's provider has OpenAI's API, what it does not support is refused by name.",
    "properties": {
        "model": ref("schemas", "Rollout"),
        "messages": MESSAGES,
        "system": {"type": ["string", "array", "null"], "description": "Appended to the version's own."},
        "prompt_variables": VARIABLES,
        "metadata": {"description": "Its `user_id` is the stickiness unit; the header x-user-id takes precedence."},
        "stream": _STREAMED,
    },
    "example": {"model": "support", "max_tokens": 100, "messages": [{"role": "user", "content": "Hello"}]},
}
_MESSAGES_ANSWER: Final[Schema] = {
    "type": "object",
    "required": ["content"],
    "description": "A message: the provider's, unchanged, or its answer translated.",
    "properties": {"content": {"type": "array"}},
}
_COUNT_REQUEST: Final[Schema] = {
    **_MESSAGES_REQUEST,
    "description": "Anthropic's request for a message, as it would be sent: the version's prompt is counted too. What "
    "only says how to answer is left out. 404 if the version's provider does not have Anthropic's API.",
    "example": {"model": "support", "messages": [{"role": "user", "content": "Hello"}]},
}
_COUNT_ANSWER: Final[Schema] = {
    "type": "object",
    "required": ["input_tokens"],
    "description": "The provider's answer, unchanged.",
    "properties": {"input_tokens": {"type": "integer"}},
}
_EMBEDDINGS_REQUEST: Final[Schema] = {
    "type": "object",
    "required": ["model"],
    "description": "OpenAI's request for embeddings, forwarded to stable's provider with stable's model.",
    "properties": {"model": ref("schemas", "Rollout")},
    "example": {"model": "support", "input": "Hello"},
}
_EMBEDDINGS_ANSWER: Final[Schema] = {
    "type": "object",
    "required": ["data"],
    "description": "The provider's embeddings, unchanged.",
    "properties": {"data": {"type": "array"}},
}
_MODEL: Final[Schema] = {
    "description": "A rollout, as OpenAI's or Anthropic's clients read a model.",
    "oneOf": [
        {
            "type": "object",
            "required": ["id", "object", "created", "owned_by"],
            "properties": {
                "id": {"type": "string"},
                "object": {"const": "model"},
                "created": {"type": "integer"},
                "owned_by": {"const": "promptrollout"},
            },
        },
        {
            "type": "object",
            "required": ["type", "id", "display_name", "created_at"],
            "properties": {
                "type": {"const": "model"},
                "id": {"type": "string"},
                "display_name": {"type": "string"},
                "created_at": {"type": "string", "format": "date-time"},
            },
        },
    ],
}
_MODELS: Final[Schema] = {
    "type": "object",
    "required": ["data"],
    "properties": {
        "data": {"type": "array", "items": ref("schemas", "Model")},
        "object": {"const": "list"},
        "has_more": {"const": False},
        "first_id": {"type": ["string", "null"]},
        "last_id": {"type": ["string", "null"]},
    },
}
_ANTHROPIC_VERSION: Final = header(ANTHROPIC_HEADER, "With it, answers and errors have Anthropic's format.")
# the gateway's own refusals, and the provider's errors
_REFUSALS: Final = {
    "400": "The request is not valid, by the gateway or by the provider.",
    "401": "The gateway requires a key, and it is missing or unknown.",
    "404": "No such rollout, or not for this key; or its provider does not support this URL.",
    "405": "The URL does not support this method.",
    "408": "The request did not arrive in time.",
    "413": "The request is over the gateway's limit.",
    "415": "Compressed requests are not supported.",
    "429": "Too many requests, of this key or for the provider.",
    "4XX": "The provider refused the request, with its status, code and message.",
    "502": "The provider failed, cannot be reached, or its answer is not valid.",
    "503": "This pod, or the provider, is overloaded.",
    "504": "The provider took too long.",
    "5XX": "An internal error of the gateway.",
}


@dataclass(frozen=True, slots=True)
class _Answered:
    """An endpoint that a model answers."""

    operation: str
    summary: str
    request: Schema
    answer: Schema
    error: str = "Error"
    """Its schema's name."""
    streams: bool = True


_ANSWERED: Final[Mapping[str, _Answered]] = {
    "chat": _Answered("createChatCompletion", "Answer a chat", _CHAT_REQUEST, _CHAT_ANSWER),
    "responses": _Answered("createResponse", "Answer with a response", _RESPONSES_REQUEST, _RESPONSES_ANSWER),
    "messages": _Answered(
        "createMessage", "Answer with a message", _MESSAGES_REQUEST, _MESSAGES_ANSWER, "MessagesError"
    ),
    "count_tokens": _Answered(
        "countTokens", "Count a message's tokens", _COUNT_REQUEST, _COUNT_ANSWER, "MessagesError", streams=False
    ),
    "embeddings": _Answered("createEmbedding", "Embed texts", _EMBEDDINGS_REQUEST, _EMBEDDINGS_ANSWER, streams=False),
}
"""By the protocol's name."""


def document() -> Schema:
    """The document as plain values."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "PromptRollout gateway",
            "version": __version__,
            "description": "Models are rollouts: each request is answered by the version that its user is assigned to.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            **{path: {"post": _answered(protocol.name)} for path, protocol in PROTOCOLS.items()},
            "/v1/models": {"get": _models()},
            "/v1/models/{model}": {"get": _model()},
            **applications.paths(),
            PATH: {
                "get": {
                    "operationId": "describe",
                    "summary": "This document",
                    "parameters": [_ANTHROPIC_VERSION],
                    "responses": {"200": answer("OpenAPI 3.1.", {"type": "object"}), **_of_either("401", "405")},
                }
            },
        },
        # none where the gateway's auth.mode is None
        "security": [{}, {"bearer": []}, {"xApiKey": []}, {"apiKey": []}],
        "components": {
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A key of this gateway, or the token of a Kubernetes ServiceAccount.",
                },
                "xApiKey": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "x-api-key",
                    "description": "The same, as Anthropic's SDKs send it.",
                },
                "apiKey": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "api-key",
                    "description": "The same, as Azure's SDKs send it.",
                },
            },
            "schemas": {
                "Rollout": ROLLOUT,
                **{f"{protocol.name}Request": _ANSWERED[protocol.name].request for protocol in PROTOCOLS.values()},
                **{f"{protocol.name}Answer": _ANSWERED[protocol.name].answer for protocol in PROTOCOLS.values()},
                "Model": _MODEL,
                "Models": _MODELS,
                "Error": ERROR,
                "MessagesError": MESSAGES_ERROR,
                **applications.schemas(),
            },
        },
    }


def _answered(protocol: str) -> Schema:
    about = _ANSWERED[protocol]
    success = answer("The answer.", ref("schemas", f"{protocol}Answer"))
    if about.streams:
        success["content"][_STREAM] = {}  # a schema there would be read as that of each event
    success["headers"] = WHAT_ANSWERED
    error = ref("schemas", about.error)
    return {
        "operationId": about.operation,
        "summary": about.summary,
        "requestBody": json_body(ref("schemas", f"{protocol}Request")),
        "responses": {"200": success, **{status: refusal(status, why, error) for status, why in _REFUSALS.items()}},
    }


def _models() -> Schema:
    return {
        "operationId": "listModels",
        "summary": "All rollouts",
        "parameters": [_ANTHROPIC_VERSION],
        "responses": {"200": answer("The rollouts.", ref("schemas", "Models")), **_of_either("401", "405")},
    }


def _model() -> Schema:
    return {
        "operationId": "retrieveModel",
        "summary": "One rollout",
        "parameters": [in_path("model"), _ANTHROPIC_VERSION],
        "responses": {"200": answer("The rollout.", ref("schemas", "Model")), **_of_either("401", "404", "405")},
    }


def _of_either(*statuses: str) -> Schema:
    """Refusals in the shape that the caller's headers ask for."""
    error = {"oneOf": [ref("schemas", "Error"), ref("schemas", "MessagesError")]}
    refusals = {status: refusal(status, _REFUSALS[status], error) for status in (*statuses, "503", "5XX")}
    return {**refusals, "4XX": refusal("400", "The request is not valid HTTP.", error)}


DOCUMENT: Final = orjson.dumps(document())
"""As it is served."""
