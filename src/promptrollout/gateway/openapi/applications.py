"""Votes, rendered prompts, their reports and OpenFeature's protocol in the OpenAPI document.

Requests are described by the models that read them; tests check the answers against this document.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, get_args

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from promptrollout.gateway.applications import ofrep, render, usage
from promptrollout.gateway.applications.feedback import FEEDBACK_PATH, SCORES_PATH, Feedback, NotCounted, Score
from promptrollout.gateway.applications.usage import Report
from promptrollout.gateway.assignment.assign import CONVERSATION_HEADER, USER_HEADER
from promptrollout.gateway.openapi.parts import (
    MESSAGES,
    OF_ARM,
    USER,
    VARIABLES,
    VARIANT,
    VERSION,
    Schema,
    answer,
    header,
    in_path,
    json_body,
    obj,
    ref,
    refusal,
)

_READ: Final[tuple[type[BaseModel], ...]] = (Feedback, Score, Report, ofrep.EvaluationRequest)

# ---------------------------------------------------------------- errors: the codes of each status

Codes = Mapping[str, tuple[str, ...]]

_OF_ALL: Final[Codes] = {
    "400": ("invalid_json", "invalid_http", "upgrade_not_supported"),
    "401": ("missing_api_key", "invalid_api_key"),
    "405": ("method_not_allowed",),
    "408": ("request_timeout",),
    "413": ("request_too_large",),
    "415": ("unsupported_encoding",),
    "429": ("rate_limit_exceeded",),
    "431": ("headers_too_large",),
    "500": ("internal",),
    "503": ("overloaded", "authentication_unavailable"),
}
_WHY: Final = {
    "400": "The request is not valid; `param` names the field.",
    "401": "The gateway requires a key, and it is missing or unknown.",
    "404": "This gateway does not have it, or this key may not use it.",
    "405": "The URL does not support this method.",
    "408": "The request did not arrive in time.",
    "413": "The request is over the gateway's limit.",
    "415": "Compressed requests are not supported.",
    "429": "Too many requests with this key.",
    "431": "The request's head is too large.",
    "500": "An internal error of the gateway; see its log.",
    "503": "This pod is overloaded, or the token cannot be reviewed now.",
}
_UNFILLED: Final = ("invalid_type", "prompt_variable_missing", "prompt_render_failed", "system_message_refused")


def _refusals(**codes: tuple[str, ...]) -> Schema:
    """Refusals in OpenAI's format; `codes` are those besides the ones of all paths, by `_<status>`."""
    own = {status.removeprefix("_"): values for status, values in codes.items()}
    return {
        status: refusal(status, _WHY[status], _with_code(*own.get(status, ()), *_OF_ALL.get(status, ())))
        for status in sorted({*_OF_ALL, *own})
    }


def _with_code(*codes: str) -> Schema:
    said = {"type": "object", "properties": {"code": {"enum": list(codes)}}}
    return {"allOf": [ref("schemas", "Error"), {"type": "object", "properties": {"error": said}}]}


def _ofrep_refusals(*, one: bool) -> Schema:
    """Refusals in OpenFeature's format; `one`: of a single flag."""
    codes = {"400": sorted({*ofrep.CODES.values(), ofrep.GENERAL} - {"FLAG_NOT_FOUND"}), "404": ["FLAG_NOT_FOUND"]}
    refusals = {}
    for status in sorted({*_OF_ALL, "404"} if one else _OF_ALL):
        if status >= "500":
            schema = ref("schemas", "FlagsFailure")
        else:
            code = {"type": "object", "properties": {"errorCode": {"enum": codes.get(status, [ofrep.GENERAL])}}}
            schema = {"allOf": [ref("schemas", "FlagError"), code]}
        refusals[status] = refusal(status, _WHY[status].partition("; `param`")[0].rstrip(".") + ".", schema)
    return refusals


# ---------------------------------------------------------------- answers

_TEXT: Final[Schema] = {"type": "string"}
_OBJECTS: Final[Schema] = {"type": "array", "items": {"type": "object"}}
_DIGEST: Final[Schema] = {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}
_PROMPT: Final[Mapping[str, Schema]] = {
    "provider": {"type": "string", "description": "The ModelProvider's name."},
    "model": _TEXT,
    "messages": {**_OBJECTS, "description": "The version's messages, rendered, and the request's own."},
    "parameters": {"type": "object", "description": "As OpenAI's chat completions name them, whatever the provider."},
    "tools": {**_OBJECTS, "description": "If the version has some."},
    "response_format": {"type": "object", "description": "If the version has an `outputSchema`."},
}
_NOT_ALWAYS: Final = ("tools", "response_format")


def _required(properties: Mapping[str, Schema], *optional: str) -> list[str]:
    return [name for name in properties if name not in optional]


def _vote(kind: str) -> Schema:
    why = (
        "`already_counted`: this pod knows one of the same kind. `too_old`: the answer is older than 24 h. "
        "`version_retired`: the version is neither stable nor canary any more. `not_compared`: the answer counts for "
        "neither arm."
    )
    return _answered(kind, get_args(NotCounted), why)


def _answered(kind: str, reasons: Iterable[str], why: str) -> Schema:
    counted = obj(object={"const": kind}, counted={"const": True})
    reason = {"enum": list(reasons), "description": why}
    not_counted = obj(object={"const": kind}, counted={"const": False}, reason=reason)
    return {"oneOf": [counted, not_counted], "description": "Whether it was counted, or why not."}


def _rendered() -> Schema:
    properties: dict[str, Schema] = {
        "object": {"const": "prompt"},
        "rollout": _TEXT,
        "version": VERSION,
        "digest": _DIGEST,
        "variant": VARIANT,
        **_PROMPT,
        "usage_token": {
            "type": ["string", "null"],
            "description": "For the usage report, once; null if nothing has to be reported.",
        },
        "cache_seconds": {
            "type": ["integer", "null"],
            "description": "How long the prompt may be used; null without `evidenceSource: Reported`.",
        },
    }
    return {
        **obj(_required(properties, *_NOT_ALWAYS), **properties),
        "description": "The prompt of this user's version, in OpenAI's format.",
    }


def _evaluation() -> Schema:
    metadata = obj(
        ["version", "digest", "rolloutUID"],
        version=VERSION,
        digest=_DIGEST,
        rolloutUID=_TEXT,
        cacheSeconds={"type": "integer", "description": "With `evidenceSource: Reported`: how long it may be used."},
        usageToken={"type": "string", "description": "For one usage report at `/v1/usage`."},
    )
    reason = {
        "enum": list(get_args(ofrep.Reason)),
        "description": "`SPLIT`: takes part in the comparison; `DEFAULT`: does not; `TARGETING_MATCH`: a tester's.",
    }
    value = obj(_required(_PROMPT, *_NOT_ALWAYS), **_PROMPT)
    return obj(key=_TEXT, value=value, variant=VARIANT, reason=reason, metadata=metadata)


def _flag_error() -> Schema:
    codes = sorted({*ofrep.CODES.values(), ofrep.GENERAL})
    key = {"type": "string", "description": "The flag, if one was asked for."}
    return obj(["errorCode", "errorDetails"], key=key, errorCode={"enum": codes}, errorDetails=_TEXT)


def _schemas_read() -> dict[str, Schema]:
    """The schemas of the models that read requests."""
    _, definitions = models_json_schema(
        [(model, "validation") for model in _READ], ref_template="#/components/schemas/{model}"
    )
    return {name: _untitled(schema) for name, schema in definitions["$defs"].items()}


def _untitled(schema: Any) -> Any:
    """The schema without the titles that pydantic makes from names."""
    if isinstance(schema, list):
        return [_untitled(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {k: _untitled(v) for k, v in schema.items() if k != "title" or not isinstance(v, str)}


def schemas() -> dict[str, Schema]:
    """The schemas by name, for the document's components."""
    flag = {"oneOf": [ref("schemas", "Evaluation"), ref("schemas", "FlagError")]}
    return {
        **_schemas_read(),
        "RenderRequest": {
            "type": "object",
            "description": "The user is identified as for a chat completion. Other fields are ignored.",
            "properties": {"messages": MESSAGES, "prompt_variables": VARIABLES, "user": USER},
        },
        "FeedbackAnswer": _vote("feedback"),
        "ScoreAnswer": _vote("score"),
        "RenderedPrompt": _rendered(),
        "ReportAnswer": _answered(
            "usage",
            get_args(usage.NotCounted),
            "`already_reported`: once is enough. `too_late`: nothing waits for it any more, its silence counted as a "
            "failure. `version_retired`: neither stable nor canary any more, or the rollout takes no reports now.",
        ),
        "Evaluation": _evaluation(),
        "Evaluations": obj(flags={"type": "array", "items": flag}),
        "FlagError": {**_flag_error(), "description": "OpenFeature's error."},
        "FlagsFailure": {**obj(errorDetails=_TEXT), "description": "OpenFeature's error for a failure of the server."},
    }


# ---------------------------------------------------------------- paths


def paths() -> dict[str, Schema]:
    """The operations by path; all are POST."""
    who = [
        header(USER_HEADER, "The stickiness unit, with `stickiness.by: User`."),
        header(CONVERSATION_HEADER, "The stickiness unit, with `stickiness.by: Conversation`."),
    ]
    voted = ("invalid_vote", "invalid_response_id")
    rendered = {**answer("The prompt.", ref("schemas", "RenderedPrompt")), "headers": _RENDERED_HEADERS}
    silent = _refusals(_400=("invalid_type", "invalid_token"), _503=("other_pod_silent",))
    silent["503"]["description"] += " Or the pod that rendered the prompt does not answer: report again."
    operations = {
        FEEDBACK_PATH: _operation(
            "postFeedback",
            "What a user says of an answer",
            "Feedback",
            {"200": answer("Read.", ref("schemas", "FeedbackAnswer"))}
            | _refusals(_400=voted, _404=("response_not_found",)),
        ),
        SCORES_PATH: _operation(
            "postScore",
            "A number that somebody gives an answer",
            "Score",
            {"200": answer("Read.", ref("schemas", "ScoreAnswer"))}
            | _refusals(_400=(*voted, "too_many_scores"), _404=("response_not_found",)),
        ),
        f"{render.PREFIX}{{rollout}}{render.SUFFIX}": {
            **_operation(
                "renderPrompt",
                "The prompt that a user gets",
                "RenderRequest",
                {"200": rendered} | _refusals(_400=_UNFILLED, _404=("rollout_not_found",)),
            ),
            "parameters": [in_path("rollout"), *who],
        },
        usage.PATH: _operation(
            "reportUsage",
            "What became of a rendered prompt",
            "Report",
            {"200": answer("Read.", ref("schemas", "ReportAnswer"))} | silent,
        ),
        f"{ofrep.PATH}/{{rollout}}": {
            **_operation(
                "evaluateFlag",
                "OpenFeature's evaluation of one rollout",
                "EvaluationRequest",
                {"200": answer("The user's prompt.", ref("schemas", "Evaluation"))} | _ofrep_refusals(one=True),
                required=False,
            ),
            "parameters": [in_path("rollout")],
        },
        ofrep.PATH: {
            **_operation(
                "evaluateFlags",
                "OpenFeature's evaluation of all rollouts",
                "EvaluationRequest",
                {
                    "200": {**answer("The user's prompts.", ref("schemas", "Evaluations")), "headers": _TAGGED},
                    "304": {
                        "description": "Unchanged since the answer that If-None-Match names.",
                        "headers": _TAGGED,
                    },
                }
                | _ofrep_refusals(one=False),
                required=False,
            ),
            "parameters": [header("If-None-Match", "`ETag`s of answers that the caller has.")],
        },
    }
    return {path: {"post": operation} for path, operation in operations.items()}


_RENDERED_HEADERS: Final[Schema] = {
    **OF_ARM,
    "Cache-Control": {"schema": {"const": "private, no-cache"}, "required": True},
}
_TAGGED: Final[Schema] = {"ETag": {"schema": {"type": "string"}, "required": True}}


def _operation(operation: str, summary: str, request: str, responses: Schema, *, required: bool = True) -> Schema:
    return {
        "operationId": operation,
        "summary": summary,
        "requestBody": json_body(ref("schemas", request), required=required),
        "responses": responses,
    }
