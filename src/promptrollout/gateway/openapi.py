"""The serving port as an OpenAPI 3.1 document: what the gateway itself reads and refuses; the rest passes through.

Served at `GET /openapi.json`; `python -m promptrollout.gateway.openapi` writes docs/openapi.json. A field has a type
here only if the gateway refuses another one: everything else is between caller and provider.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from promptrollout import __version__
from promptrollout.api.names import HEADER_ROLLOUT, HEADER_VARIANT, HEADER_VERSION
from promptrollout.gateway.protocols import PROTOCOLS

PATH: Final = "/openapi.json"
DOCS_COPY: Final = Path("docs/openapi.json")

Schema = dict[str, Any]

_JSON: Final = "application/json"
_STREAM: Final = "text/event-stream"


def _ref(kind: str, name: str) -> Schema:
    return {"$ref": f"#/components/{kind}/{name}"}


_ROLLOUT: Final[Schema] = {"type": "string", "minLength": 1, "description": "The rollout; see `GET /v1/models`."}
_VARIABLES: Final[Schema] = {
    "type": ["object", "null"],
    "description": "Values for the variables of the version's templates; not sent on.",
}
_MESSAGES: Final[Schema] = {
    "type": ["array", "null"],
    "items": {"type": "object", "description": "A message, in any shape that the provider takes."},
    "description": "What follows the version's own messages.",
}
_STREAMED: Final[Schema] = {"description": "`true` for an answer as server-sent events."}
_CHAT_REQUEST: Final[Schema] = {
    "type": "object",
    "required": ["model"],
    "description": "OpenAI's chat completion request. Every field that is not here is sent on as it is.",
    "properties": {
        "model": _ref("schemas", "Rollout"),
        "messages": _MESSAGES,
        "prompt_variables": _VARIABLES,
        "user": {"description": "Who stays on one arm; `safety_identifier` or the header x-user-id go before it."},
        "stream": _STREAMED,
        "stream_options": {"description": "`include_usage: true` for a last event with the usage."},
        "response_format": {"description": "In the place of the version's `outputSchema`."},
    },
    "example": {"model": "support", "user": "u1", "messages": [{"role": "user", "content": "Hello"}]},
}
_CHAT_ANSWER: Final[Schema] = {
    "type": "object",
    "required": ["choices"],
    "description": "The provider's chat completion, untouched.",
    "properties": {"choices": {"type": "array"}},
}
_RESPONSES_REQUEST: Final[Schema] = {
    "type": "object",
    "required": ["model"],
    "description": "OpenAI's request for a response. `background` is refused; every other field is sent on as it is.",
    "properties": {
        "model": _ref("schemas", "Rollout"),
        "input": {
            "type": ["string", "array", "null"],
            "items": {"type": "object", "description": "An item, in any shape that the provider takes."},
        },
        "instructions": {"type": ["string", "null"], "description": "Follow the version's own."},
        "prompt_variables": _VARIABLES,
        "user": {"description": "Who stays on one arm; `safety_identifier` or the header x-user-id go before it."},
        "stream": _STREAMED,
        "text": {"description": "Its `format` stands in the place of the version's `outputSchema`."},
    },
    "example": {"model": "support", "user": "u1", "input": "Hello"},
}
_RESPONSES_ANSWER: Final[Schema] = {
    "type": "object",
    "required": ["output"],
    "description": "The provider's response, untouched.",
    "properties": {"output": {"type": "array"}},
}
_MESSAGES_REQUEST: Final[Schema] = {
    "type": "object",
    "required": ["model"],
    "description": "Anthropic's request for a message. Fields that are not here are sent on as they are; where the "
    "version's provider is of OpenAI's kind, what it has nothing like is refused by name.",
    "properties": {
        "model": _ref("schemas", "Rollout"),
        "messages": _MESSAGES,
        "system": {"type": ["string", "array", "null"], "description": "Follows ours."},
        "prompt_variables": _VARIABLES,
        "metadata": {"description": "Its `user_id` says who stays on one arm; the header x-user-id goes before it."},
        "stream": _STREAMED,
    },
    "example": {"model": "support", "max_tokens": 100, "messages": [{"role": "user", "content": "Hello"}]},
}
_MESSAGES_ANSWER: Final[Schema] = {
    "type": "object",
    "required": ["content"],
    "description": "A message: the provider's, untouched, or made of what it answered.",
    "properties": {"content": {"type": "array"}},
}
_EMBEDDINGS_REQUEST: Final[Schema] = {
    "type": "object",
    "required": ["model"],
    "description": "OpenAI's request for embeddings, sent on to stable's provider under stable's model.",
    "properties": {"model": _ref("schemas", "Rollout")},
    "example": {"model": "support", "input": "Hello"},
}
_EMBEDDINGS_ANSWER: Final[Schema] = {
    "type": "object",
    "required": ["data"],
    "description": "The provider's embeddings, untouched.",
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
        "data": {"type": "array", "items": _ref("schemas", "Model")},
        "object": {"const": "list"},
        "has_more": {"const": False},
        "first_id": {"type": ["string", "null"]},
        "last_id": {"type": ["string", "null"]},
    },
}
_ANTHROPIC_VERSION: Final[Schema] = {
    "name": "anthropic-version",
    "in": "header",
    "schema": {"type": "string"},
    "description": "With it the answer has Anthropic's shape.",
}
_ERROR: Final[Schema] = {
    "type": "object",
    "required": ["error"],
    "description": "OpenAI's error object.",
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "The field that is at fault."},
                "code": {"type": ["string", "null"], "description": "See the table in docs/gateway.md."},
            },
        }
    },
}
_MESSAGES_ERROR: Final[Schema] = {
    "type": "object",
    "required": ["type", "error"],
    "description": "Anthropic's error object.",
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}

_RETRY_AFTER: Final[Schema] = {
    "Retry-After": {"schema": {"type": "string"}, "description": "The provider's, or 1 of an overloaded pod."}
}
_WHAT_ANSWERED: Final[Schema] = {
    HEADER_ROLLOUT: {"schema": {"type": "string"}},
    HEADER_VERSION: {"schema": {"type": "string"}, "description": "The first ten characters of the digest."},
    HEADER_VARIANT: {"schema": {"enum": ["stable", "canary"]}},
}
# what the gateway refuses on its own, and what a provider's errors become
_REFUSALS: Final = {
    "400": "The request is at fault, or the provider says so.",
    "401": "The gateway asks its callers for keys, and this one is missing or unknown.",
    "404": "No such rollout, or not for this key.",
    "405": "Another method is meant.",
    "408": "The request was not here in time.",
    "413": "The request is over the gateway's limit.",
    "415": "Compressed requests are not taken.",
    "429": "Too many requests, of this key or for the provider.",
    "4XX": "The provider refused the request, with its status, code and message.",
    "502": "The provider failed, cannot be reached, or answered something else.",
    "503": "This pod, or the provider, is overloaded.",
    "504": "The provider took too long.",
    "5XX": "A fault of the gateway.",
}


@dataclass(frozen=True, slots=True)
class _Answered:
    """An endpoint that a model answers."""

    operation: str
    summary: str
    request: Schema
    answer: Schema
    error: str = "Error"
    streams: bool = True


_ANSWERED: Final[Mapping[str, _Answered]] = {
    "chat": _Answered("createChatCompletion", "Answer a chat", _CHAT_REQUEST, _CHAT_ANSWER),
    "responses": _Answered("createResponse", "Answer with a response", _RESPONSES_REQUEST, _RESPONSES_ANSWER),
    "messages": _Answered(
        "createMessage", "Answer with a message", _MESSAGES_REQUEST, _MESSAGES_ANSWER, "MessagesError"
    ),
    "embeddings": _Answered("createEmbedding", "Embed texts", _EMBEDDINGS_REQUEST, _EMBEDDINGS_ANSWER, streams=False),
}
"""By the protocol's name."""


def _object(*required: str, **properties: Schema) -> Schema:
    return {"type": "object", "required": list(required), "properties": properties}


_TEXT: Final[Schema] = {"type": "string"}
OF_APPLICATIONS: Final[dict[str, tuple[str, str, Schema]]] = {
    "/v1/feedback": (
        "postFeedback",
        "What a user says of an answer",
        _object(
            "response_id", response_id=_TEXT, rating={"enum": ["positive", "negative"]}, edited={"type": "boolean"}
        ),
    ),
    "/v1/scores": (
        "postScore",
        "A number that somebody gives an answer",
        _object("name", "value", response_id=_TEXT, conversation_id=_TEXT, name=_TEXT, value={"type": "number"}),
    ),
    "/v1/prompts/{rollout}/render": (
        "renderPrompt",
        "The prompt that a user gets",
        _object(prompt_variables=_VARIABLES),
    ),
    "/v1/usage": ("reportUsage", "What became of a rendered prompt", _object("token", token=_TEXT)),
    "/ofrep/v1/evaluate/flags/{rollout}": ("evaluateFlag", "OpenFeature's evaluation of one rollout", _object()),
    "/ofrep/v1/evaluate/flags": ("evaluateFlags", "OpenFeature's evaluation of all rollouts", _object()),
}
"""By path: operation, summary, request."""


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
            "/v1/models": {
                "get": {
                    "operationId": "listModels",
                    "summary": "All rollouts",
                    "parameters": [_ANTHROPIC_VERSION],
                    "responses": {
                        "200": _answer("The rollouts.", "Models"),
                        "401": _refusal("401"),
                        "405": _refusal("405"),
                    },
                }
            },
            "/v1/models/{model}": {
                "get": {
                    "operationId": "retrieveModel",
                    "summary": "One rollout",
                    "parameters": [
                        {"name": "model", "in": "path", "required": True, "schema": _ref("schemas", "Rollout")},
                        _ANTHROPIC_VERSION,
                    ],
                    "responses": {
                        "200": _answer("The rollout.", "Model"),
                        "401": _refusal("401"),
                        "404": _refusal("404"),
                        "405": _refusal("405"),
                    },
                }
            },
            **{path: {"post": _posted(path, *about)} for path, about in OF_APPLICATIONS.items()},
            PATH: {
                "get": {
                    "operationId": "describe",
                    "summary": "This document",
                    "responses": {
                        "200": {"description": "OpenAPI 3.1.", "content": {_JSON: {"schema": {"type": "object"}}}},
                        "401": _refusal("401"),
                        "405": _refusal("405"),
                    },
                }
            },
        },
        # none where the gateway's auth.mode is None
        "security": [{}, {"bearer": []}, {"xApiKey": []}, {"apiKey": []}],
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "xApiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "api-key"},
            },
            "schemas": {
                "Rollout": _ROLLOUT,
                **{f"{protocol.name}Request": _ANSWERED[protocol.name].request for protocol in PROTOCOLS.values()},
                **{f"{protocol.name}Answer": _ANSWERED[protocol.name].answer for protocol in PROTOCOLS.values()},
                "Model": _MODEL,
                "Models": _MODELS,
                "Error": _ERROR,
                "MessagesError": _MESSAGES_ERROR,
            },
        },
    }


def _answered(protocol: str) -> Schema:
    about = _ANSWERED[protocol]
    answer = _answer("The answer.", f"{protocol}Answer")
    if about.streams:
        answer["content"][_STREAM] = {"schema": {"type": "string", "description": "Events as they come."}}
    answer["headers"] = _WHAT_ANSWERED
    return {
        "operationId": about.operation,
        "summary": about.summary,
        "requestBody": {"required": True, "content": {_JSON: {"schema": _ref("schemas", f"{protocol}Request")}}},
        "responses": {"200": answer, **{status: _refusal(status, about.error) for status in _REFUSALS}},
    }


def _posted(path: str, operation: str, summary: str, request: Schema) -> Schema:
    """An endpoint of applications; its errors are in OpenAI's shape, but OFREP's own."""
    named = re.findall(r"{(\w+)}", path)
    error = {"schema": {"type": "object"}}
    return {
        "operationId": operation,
        "summary": summary,
        "parameters": [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in named],
        "requestBody": {"required": True, "content": {_JSON: {"schema": request}}},
        "responses": {
            "200": {"description": "Done.", "content": {_JSON: {"schema": {"type": "object"}}}},
            "304": {"description": "Nothing has changed since the `ETag` of If-None-Match."},
            "default": {"description": "Refused; the error says what to mend.", "content": {_JSON: error}},
        },
    }


def _answer(description: str, schema: str) -> Schema:
    return {"description": description, "content": {_JSON: {"schema": _ref("schemas", schema)}}}


def _refusal(status: str, error: str = "Error") -> Schema:
    found = _answer(_REFUSALS[status], error)
    if status in ("429", "4XX", "503"):
        found["headers"] = _RETRY_AFTER
    if status == "405":
        found["headers"] = {"Allow": {"schema": {"type": "string"}, "required": True}}
    return found


DOCUMENT: Final = orjson.dumps(document())
"""As it is served."""

if __name__ == "__main__":
    DOCS_COPY.write_bytes(orjson.dumps(document(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
