"""ModelProvider: an LLM endpoint, with its key, patience and prices."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from promptrollout.api.meta import Conditions, CustomResource, Decimal, Model, SecretKeyRef


class Timeouts(Model):
    """In seconds."""

    connect_seconds: Annotated[int, Field(ge=1, le=60)] = 5
    """For the connection, TLS included."""
    first_byte_seconds: Annotated[int, Field(ge=1, le=600)] = 60
    """From the request to the first byte of the answer: reasoning models take their time."""
    total_seconds: Annotated[int, Field(ge=1, le=3600)] = 300
    """For the whole answer, retries included."""


class ModelPrice(Model):
    """USD for a million tokens. Without a row a model's cost is unknown: requests count as unpriced, not as free."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    """As in the prompt."""
    input_per_million_usd: Decimal
    """Of input tokens that were not cached."""
    output_per_million_usd: Decimal
    """Of output tokens, reasoning included."""
    cached_input_per_million_usd: Decimal | None = None
    """Absent: cached input costs as much as input."""
    cache_write_per_million_usd: Decimal | None = None
    """Of input that the provider put into its cache, where it bills that apart. Absent: as much as input."""


class ProviderSpec(Model):
    rules: ClassVar = (
        (
            "self.type == oldSelf.type && self.baseURL == oldSelf.baseURL",
            "type and baseURL are immutable: another endpoint is another ModelProvider, hence another version",
        ),
    )

    type: Literal["OpenAI", "Anthropic"] = "OpenAI"
    """`OpenAI`: anything that speaks OpenAI's API (OpenAI, vLLM, Ollama, gateways). `Anthropic`: its Messages API."""
    base_url: Annotated[
        str,
        Field(alias="baseURL", max_length=1024, pattern=r"^https?://[^\s?#]+[^/\s?#]$"),
    ]
    """Up to and with `/v1`, without a slash at the end."""
    api_key_secret_ref: SecretKeyRef | None = None
    timeouts: Timeouts = Timeouts()
    max_retries: Annotated[int, Field(ge=0, le=5)] = 2
    """Further tries after a connection failure, 429, 502, 503 or 504 before the first byte of the answer."""
    prices: Annotated[
        list[ModelPrice],
        Field(
            max_length=256,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["model"]},
        ),
    ] = []
    """One row for each model. A changed price counts for requests from then on."""


class ProviderStatus(Model):
    observed_generation: Annotated[int, Field(ge=0)] | None = None
    conditions: Conditions = []


class ModelProvider(CustomResource):
    """An LLM endpoint."""

    kind_name = "ModelProvider"
    plural = "modelproviders"
    short_names = ("mprov",)
    columns = (
        ("Type", "string", ".spec.type", 0),
        ("URL", "string", ".spec.baseURL", 0),
        ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', 0),
        ("Age", "date", ".metadata.creationTimestamp", 0),
    )
    selectable_fields = (".spec.type",)

    spec: ProviderSpec
    status: ProviderStatus | None = None
