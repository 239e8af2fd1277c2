"""PromptVersion: one immutable prompt, and the template that a PromptRollout carries inline."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from promptrollout.api.meta import (
    Conditions,
    CustomResource,
    Decimal,
    Digest,
    Json,
    LocalRef,
    Model,
    ModelName,
    SignedDecimal,
)

MAX_SPEC_BYTES = 192 * 1024


class Message(Model):
    """One message of the prompt, or the place where the request's own messages stand."""

    rules: ClassVar = (
        (
            "has(self.placeholder) != has(self.role)",
            "a message has either role and content, or placeholder",
        ),
        ("has(self.role) == has(self.content)", "role and content go together"),
    )

    role: Literal["system", "developer", "user", "assistant"] | None = None
    """Role of the message at the provider."""
    content: Annotated[str, Field(max_length=131_072)] | None = None
    """Text as a Jinja2 template. `{{ name }}` is filled from `prompt_variables` of the request. All messages together
    may have 2,500 tokens in braces."""
    placeholder: Literal["history"] | None = None
    """`history`: the messages of the request go here instead of at the end. At most once."""


class Parameters(Model):
    """Sampling parameters. They replace those of the request. What is absent here is taken from the request."""

    temperature: Decimal | None = None
    """Randomness, for example "0.2"."""
    top_p: Decimal | None = None
    """Share of the probability mass that is sampled from, for example "0.95"."""
    max_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Longest answer in tokens. A truncated answer is rarely valid JSON."""
    seed: Annotated[int, Field(ge=0, le=2**53)] | None = None
    """Seed, for providers that support it."""
    presence_penalty: SignedDecimal | None = None
    """For example "-0.5"."""
    frequency_penalty: SignedDecimal | None = None
    """For example "0.5"."""
    stop: Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=16)] | None = None
    """Texts that end the answer."""
    extra: Annotated[Json, Field(max_length=32)] | None = None
    """Further fields of the provider's request, for example `reasoning_effort`."""


class Fallback(Model):
    """A model that answers when those before it cannot."""

    provider_ref: LocalRef
    """The ModelProvider that answers."""
    model: ModelName
    """Name of the model at that provider."""


class PromptSpec(Model):
    """The prompt, and what its answers are checked against. All fields are in the digest, and none has a default."""

    rules: ClassVar = (
        (
            "self.messages.filter(m, has(m.placeholder)).size() <= 1",
            "placeholder: history may appear at most once",
        ),
        (
            "self.messages.map(m, has(m.content) ? m.content.size() : 0).sum() <= 196608",
            "all messages together may have at most 192 KiB",
        ),
    )

    provider_ref: LocalRef
    """The ModelProvider that answers."""
    model: ModelName
    """Name of the model at the provider."""
    fallbacks: Annotated[list[Fallback], Field(max_length=4)] | None = None
    """Models to ask when the provider cannot answer, in this order, with the same messages and parameters. The failure
    still counts as an error of the version."""
    parameters: Parameters | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=64)]
    """Messages of the prompt. Those of the request follow, unless a placeholder says where they go."""
    tools: Annotated[list[Json], Field(max_length=128)] | None = None
    """Tools as in OpenAI's API. They replace those of the request."""
    output_schema: Json | None = None
    """JSON Schema of the answer. An answer that does not match is a contract failure. The size of the schema and of the
    tools' parameters is bounded."""
    caller_system_message: Literal["Append", "Refuse", "Replace"] | None = None
    """System messages of the request: appended (default), refused with 400, or dropped."""


class VersionStatus(Model):
    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """The generation of the spec that this status describes."""
    digest: Digest | None = None
    """Digest of the spec."""
    conditions: Conditions = []


class PromptVersion(CustomResource):
    """One immutable prompt."""

    kind_name = "PromptVersion"
    plural = "promptversions"
    short_names = ("pver",)
    columns = (
        ("Model", "string", ".spec.model", 0),
        ("Provider", "string", ".spec.providerRef.name", 0),
        ("Digest", "string", ".status.digest", 1),
        ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', 0),
        ("Age", "date", ".metadata.creationTimestamp", 0),
    )
    selectable_fields = (".spec.providerRef.name", ".spec.model")

    spec: Annotated[
        PromptSpec,
        Field(json_schema_extra={"x-immutable": "spec is immutable: make another PromptVersion"}),
    ]
    status: VersionStatus | None = None


def canonical(spec: PromptSpec) -> dict[str, Any]:
    """The JSON object whose canonical form is hashed: only what was declared, under the names of the API."""
    # mode "python": in mode "json" a NaN would silently become null
    return spec.model_dump(by_alias=True, exclude_none=True, exclude_unset=True, mode="python")
