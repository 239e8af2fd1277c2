"""ModelProvider: an LLM endpoint, with its keys, patience, trust and prices."""

from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from promptrollout.api.base_url import BASE_URL, BASE_URL_PROBLEM, base_url_problem
from promptrollout.api.meta import (
    Conditions,
    ConfigMapKeyRef,
    CustomResource,
    Decimal,
    HeaderName,
    Model,
    ModelName,
    SecretKeyRef,
)

RESERVED_HEADERS: Final = (
    *("accept-encoding", "authorization", "connection", "content-encoding", "content-length", "content-type", "cookie"),
    *("host", "keep-alive", "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade"),
)
"""The connection's, the message's, or credentials, which belong in a Secret."""


class Timeouts(Model):
    """Timeouts of requests to the provider."""

    connect_seconds: Annotated[int, Field(ge=1, le=60)] = 5
    """Time to connect, including TLS."""
    first_byte_seconds: Annotated[int, Field(ge=1, le=600)] = 60
    """Time from the request to the first byte of the answer. Reasoning models need long."""
    total_seconds: Annotated[int, Field(ge=1, le=3600)] = 300
    """Time for the whole answer, including retries and fallbacks."""
    idle_seconds: Annotated[int, Field(ge=1, le=600)] = 120
    """Longest silence within an answer that has begun. Some models send a role and think then."""
    cold_start_seconds: Annotated[int, Field(ge=0, le=1800)] = 0
    """For an endpoint that scales to zero. After a minute without an answer, the first byte may take this long, and 503
    is retried until then."""


class ModelPrice(Model):
    """Price of a model in USD for a million tokens. Requests of a model without a price have no known cost."""

    model: ModelName
    """Name of the model, as in the prompt."""
    input_per_million_usd: Decimal
    """Price of input tokens that were not cached."""
    output_per_million_usd: Decimal
    """Price of output tokens, including reasoning."""
    cached_input_per_million_usd: Decimal | None = None
    """Price of cached input tokens. Absent: as other input."""
    cache_write_per_million_usd: Decimal | None = None
    """Price of input tokens that the provider writes to its cache. Absent: as other input."""


class Auth(Model):
    """How the key is sent."""

    header: HeaderName = "Authorization"
    """The header that carries the key. Azure OpenAI: `api-key`."""
    scheme: Annotated[str, Field(max_length=32, pattern=r"^[A-Za-z0-9-]*$")] = "Bearer"
    """Word before the key. Empty: the key alone."""


class StaticHeader(Model):
    """A header of every request. Not for secrets: it is stored in the PromptDelivery."""

    rules: ClassVar = (
        (
            f"!(self.name.lowerAscii() in {list(RESERVED_HEADERS)})",
            "this header belongs to the connection, or carries credentials: use apiKeySecretRef and auth for a key",
        ),
    )

    name: HeaderName
    """Name of the header. Case does not matter."""
    value: Annotated[str, Field(max_length=1024, pattern=r"^[ -~]*$")]
    """Value of the header, in printable ASCII."""


class QueryParameter(Model):
    """A query parameter of every request."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]
    """Name, such as `api-version` for Azure OpenAI."""
    value: Annotated[str, Field(max_length=256)]
    """Value, without escapes. The gateway escapes it."""


class TLS(Model):
    """How the certificate of an https endpoint is checked. Absent: by the public certificate authorities."""

    rules: ClassVar = (
        (
            "!(has(self.caConfigMapRef) && has(self.caSecretRef))",
            "a CA comes from caConfigMapRef or from caSecretRef, not from both",
        ),
    )

    ca_config_map_ref: ConfigMapKeyRef | None = None
    """CA certificates (PEM) to trust instead of the public ones."""
    ca_secret_ref: SecretKeyRef | None = None
    """The same, from a Secret."""
    insecure_skip_verify: bool = False
    """Do not check the certificate. The condition `TLSVerified` is then False."""


def _base_url(text: str) -> str:
    if problem := base_url_problem(text):
        raise PydanticCustomError("base_url", "{problem}", {"problem": problem})
    return text


class ProviderSpec(Model):
    rules: ClassVar = (
        (
            "self.type == oldSelf.type && self.baseURL == oldSelf.baseURL",
            "type and baseURL are immutable: another endpoint is another ModelProvider, hence another version",
        ),
    )

    type: Literal["OpenAI", "Anthropic"] = "OpenAI"
    """`OpenAI`: any endpoint with OpenAI's API (OpenAI, vLLM, Ollama, gateways). `Anthropic`: its Messages API."""
    base_url: Annotated[
        str,
        Field(
            alias="baseURL",
            max_length=1024,
            pattern=r"^https?://[^\s?#]+[^/\s?#]$",
            json_schema_extra={
                "x-kubernetes-validations": [{"rule": f"self.matches(r'{BASE_URL}')", "message": BASE_URL_PROBLEM}]
            },
        ),
        AfterValidator(_base_url),
    ]
    """URL including `/v1`, without a slash at the end."""
    api_key_secret_ref: SecretKeyRef | None = None
    """The API key. Several keys, one per line, are used in turn; a key that gets 401 or 429 rests."""
    auth: Auth | None = None
    """How the key is sent. Absent: as the type expects it, for OpenAI `Authorization: Bearer`."""
    headers: Annotated[
        list[StaticHeader],
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = []
    """Further headers, for example `OpenAI-Organization`."""
    query: Annotated[
        list[QueryParameter],
        Field(
            max_length=8,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = []
    """Query parameters, for example `api-version`."""
    tls: TLS | None = None
    timeouts: Timeouts = Timeouts()
    max_retries: Annotated[int, Field(ge=0, le=5)] = 2
    """Retries after a connection failure, 429, 502, 503 or 504, before the first byte of the answer."""
    retry_budget_percent: Annotated[int, Field(ge=0, le=100)] = 20
    """Share of an arm's recent requests that may be retried, so that an outage does not multiply the load."""
    prices: Annotated[
        list[ModelPrice],
        Field(
            max_length=256,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["model"]},
        ),
    ] = []
    """One row for each model. A changed price applies to later requests."""


class ProviderStatus(Model):
    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """The generation of the spec that this status describes."""
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
