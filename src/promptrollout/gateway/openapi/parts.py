"""Shared parts of the OpenAPI document: references, errors, refusals, headers of answers."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from promptrollout.api.names import (
    HEADER_MODEL,
    HEADER_PROVIDER,
    HEADER_ROLLOUT,
    HEADER_TRACE,
    HEADER_VARIANT,
    HEADER_VERSION,
)

Schema = dict[str, Any]

JSON: Final = "application/json"


def ref(kind: str, name: str) -> Schema:
    return {"$ref": f"#/components/{kind}/{name}"}


def obj(required: Collection[str] | None = None, **properties: Schema) -> Schema:
    """An object; by default all of its properties are required."""
    return {"type": "object", "required": list(properties if required is None else required), "properties": properties}


ROLLOUT: Final[Schema] = {"type": "string", "minLength": 1, "description": "The rollout; see `GET /v1/models`."}
VARIABLES: Final[Schema] = {
    "type": ["object", "null"],
    "description": "Values for the variables of the version's templates; not forwarded.",
}
MESSAGES: Final[Schema] = {
    "type": ["array", "null"],
    "items": {"type": "object", "description": "A message, in any format that the provider supports."},
    "description": "The messages after the version's own.",
}
USER: Final[Schema] = {"description": "The stickiness unit; `safety_identifier` and x-user-id take precedence."}
VERSION: Final[Schema] = {
    "type": "string",
    "pattern": "^[0-9a-f]{10}$",
    "description": "The first ten characters of the digest.",
}
VARIANT: Final[Schema] = {"enum": ["stable", "canary"]}

ERROR: Final[Schema] = {
    **obj(
        error=obj(
            message={"type": "string"},
            type={"type": "string"},
            param={"type": ["string", "null"], "description": "The invalid field."},
            code={"type": ["string", "null"], "description": "See the table in docs/reference/http-api.md."},
        )
    ),
    "description": "OpenAI's error object.",
}
MESSAGES_ERROR: Final[Schema] = {
    **obj(type={"const": "error"}, error=obj(type={"type": "string"}, message={"type": "string"})),
    "description": "Anthropic's error object.",
}

RETRY_AFTER: Final[Schema] = {
    "Retry-After": {"schema": {"type": "string"}, "description": "The provider's; or the gateway's, in seconds."}
}
ALLOW: Final[Schema] = {"Allow": {"schema": {"type": "string"}, "required": True}}
AUTHENTICATE: Final[Schema] = {
    "WWW-Authenticate": {"schema": {"const": "Bearer"}, "description": "Not if the provider refused the request."}
}
OF_ARM: Final[Schema] = {
    HEADER_ROLLOUT: {"schema": {"type": "string"}, "required": True},
    HEADER_VERSION: {"schema": VERSION, "required": True},
    HEADER_VARIANT: {"schema": VARIANT, "required": True},
}
"""Headers that identify the version."""
WHAT_ANSWERED: Final[Schema] = {
    **OF_ARM,
    HEADER_PROVIDER: {
        "schema": {"type": "string"},
        "required": True,
        "description": "The version's own, or a fallback's.",
    },
    HEADER_MODEL: {"schema": {"type": "string"}, "required": True, "description": "Of that provider."},
    HEADER_TRACE: {"schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"}, "required": True},
}
_HEADERS: Final = {
    "401": AUTHENTICATE,
    "405": ALLOW,
    "429": RETRY_AFTER,
    "4XX": RETRY_AFTER,
    "503": RETRY_AFTER,
}


def answer(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": {JSON: {"schema": schema}}}


def refusal(status: str, description: str, schema: Schema) -> Schema:
    """An answer that is an error."""
    error = answer(description, schema)
    if status in _HEADERS:
        error["headers"] = _HEADERS[status]
    return error


def json_body(schema: Schema, *, required: bool = True) -> Schema:
    return {"required": required, "content": {JSON: {"schema": schema}}}


def in_path(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": ref("schemas", "Rollout")}


def header(name: str, description: str) -> Schema:
    return {"name": name, "in": "header", "schema": {"type": "string"}, "description": description}
