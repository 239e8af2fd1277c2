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
    """In seconds."""

    connect_seconds: Annotated[int, Field(ge=1, le=60)] = 5
    """For the connection, TLS included."""
    first_byte_seconds: Annotated[int, Field(ge=1, le=600)] = 60
    """From the request to the first byte of the answer: reasoning models take their time."""
    total_seconds: Annotated[int, Field(ge=1, le=3600)] = 300
    """For the whole answer, retries included."""
    idle_seconds: Annotated[int, Field(ge=1, le=600)] = 120
    """Between two pieces of an answer that has begun: some models say who speaks, and think then."""
    cold_start_seconds: Annotated[int, Field(ge=0, le=1800)] = 0
    """For an endpoint that scales to zero. Where it has answered nothing for a minute, the first byte may take so long,
    and 503 is asked again until then."""


class ModelPrice(Model):
    """USD for a million tokens. Without a row a model's cost is unknown: requests count as unpriced, not as free."""

    model: ModelName
    """As in the prompt."""
    input_per_million_usd: Decimal
    """Of input tokens that were not cached."""
    output_per_million_usd: Decimal
    """Of output tokens, reasoning included."""
    cached_input_per_million_usd: Decimal | None = None
    """Absent: cached input costs as much as input."""
    cache_write_per_million_usd: Decimal | None = None
    """Of input that the provider put into its cache, where it bills that apart. Absent: as much as input."""


class Auth(Model):
    """How the key is sent."""

    header: HeaderName = "Authorization"
    """Azure OpenAI: `api-key`."""
    scheme: Annotated[str, Field(max_length=32, pattern=r"^[A-Za-z0-9-]*$")] = "Bearer"
    """In front of the key; empty: the key alone."""


class StaticHeader(Model):
    """Sent with every request. Not for secrets: whoever reads PromptDeliveries reads it."""

    rules: ClassVar = (
        (
            f"!(self.name.lowerAscii() in {list(RESERVED_HEADERS)})",
            "this header belongs to the connection, or carries credentials: use apiKeySecretRef and auth for a key",
        ),
    )

    name: HeaderName
    """In any case."""
    value: Annotated[str, Field(max_length=1024, pattern=r"^[ -~]*$")]
    """Printable ASCII."""


class QueryParameter(Model):
    """Put behind the URL of every request."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]
    """Azure OpenAI: `api-version`."""
    value: Annotated[str, Field(max_length=256)]
    """As it is meant: the gateway escapes it."""


class TLS(Model):
    """Whom an https endpoint must prove to be. Absent: by the public certificate authorities."""

    rules: ClassVar = (
        (
            "!(has(self.caConfigMapRef) && has(self.caSecretRef))",
            "a CA comes from caConfigMapRef or from caSecretRef, not from both",
        ),
    )

    ca_config_map_ref: ConfigMapKeyRef | None = None
    """Certificates (PEM) that are trusted in the place of the public ones."""
    ca_secret_ref: SecretKeyRef | None = None
    """The same from a Secret."""
    insecure_skip_verify: bool = False
    """Trust whoever answers. The condition `TLSVerified` says so."""


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
    """`OpenAI`: anything that speaks OpenAI's API (OpenAI, vLLM, Ollama, gateways). `Anthropic`: its Messages API."""
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
    """Up to and with `/v1`, without a slash at the end."""
    api_key_secret_ref: SecretKeyRef | None = None
    """Several keys, one a line, are used in turn; one that is refused (401, 429) rests."""
    auth: Auth | None = None
    """Absent: as the type wants it, for OpenAI `Authorization: Bearer`."""
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
    """Parameters of the URL."""
    tls: TLS | None = None
    timeouts: Timeouts = Timeouts()
    max_retries: Annotated[int, Field(ge=0, le=5)] = 2
    """Further tries after a connection failure, 429, 502, 503 or 504 before the first byte of the answer."""
    retry_budget_percent: Annotated[int, Field(ge=0, le=100)] = 20
    """Of an arm's recent requests: so many may be tried again, and a few more, so that an outage multiplies no load."""
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
