"""PromptDelivery: the compiled configuration of one rollout, the only thing a gateway pod reads; and the pod's answer.

A delivery has no ownerReference to its rollout: it must outlive a `kubectl replace --force` and a restore from backup,
because it carries what the status would otherwise be the only one to know (see `Memory`).
"""

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from promptrollout.api.meta import (
    Conditions,
    CustomResource,
    Decimal,
    Digest,
    HeaderName,
    Model,
    ModelName,
    Name,
    ObjectName,
    ShortText,
    Text,
    Timestamp,
)
from promptrollout.api.prompt import PromptSpec
from promptrollout.api.provider import Auth, ModelPrice, QueryParameter, StaticHeader, Timeouts
from promptrollout.api.signing_key import ResponseKey
from promptrollout.api.slo import LabelValue


class RequestMatch(Model):
    """A header of a request, or a member of its W3C baggage, and the values that match it."""

    rules: ClassVar = (("has(self.header) != has(self.baggage)", "a match names either header or baggage"),)

    header: HeaderName | None = None
    """Name of the header. Case does not matter."""
    baggage: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")] | None = None
    """Key of a member of the `baggage` header, for example `user.plan`."""
    values: Annotated[list[Annotated[str, Field(max_length=256)]], Field(min_length=1, max_length=64)]
    """Values that match exactly. Baggage is percent-decoded first."""


class Audience(Model):
    """Who may get the canary. Steps apply within the audience. Others get stable and are not part of the analysis."""

    include: Annotated[list[RequestMatch], Field(max_length=16)] = []
    """All rules must match. Empty: everybody."""
    exclude: Annotated[list[RequestMatch], Field(max_length=16)] = []
    """One match excludes the request."""


Testers = Annotated[list[RequestMatch], Field(max_length=16)]


class Reporting(Model):
    """How applications that call the model themselves report what came of it."""

    cache_seconds: Annotated[int, Field(ge=0, le=3600)] = 60
    """How long applications may cache a prompt. A step's evidence starts this long after the pods confirmed it, plus
    `settleSeconds`."""
    settle_seconds: Annotated[int, Field(ge=1, le=3600)] = 300
    """A render without a report within this time counts as a failure of its arm."""


class Stickiness(Model):
    """What is assigned to an arm and stays there."""

    by: Literal["User", "Conversation", "Request", "Header"] = "User"
    """`User` and `Conversation` are read from the request. `Request` assigns each request at random."""
    header: HeaderName | None = None
    """With `by: Header`: the header whose value is the unit."""
    pin_max_age_seconds: Annotated[int, Field(ge=0, le=43_200)] = 3600
    """How long a conversation stays on the version of its first answer, if its requests name an earlier answer
    (`previous_response_id`, or the header `x-promptrollout-pin`). 0: never."""


FileSource = Annotated[str, Field(max_length=20, pattern=r"^[0-9a-f]{20}$")]
"""A hash of the object and key that a ModelProvider names: the folder of the files that come from there. A pod that
still mounts what a ModelProvider of the same name meant before finds nothing in it. Absent: of a release before, which
had no such folders."""


class TLSConfig(Model):
    """How the endpoint's certificate is checked."""

    has_ca: bool = False
    """Its own CA: PROVIDER_KEYS_DIR/<name>/<caSource>/ca.crt."""
    ca_source: FileSource | None = None
    """Of `tls.caSecretRef` or `tls.caConfigMapRef`."""
    insecure_skip_verify: bool = False


class ProviderConfig(Model):
    """A ModelProvider as a gateway pod needs it. Its keys are a file:
    PROVIDER_KEYS_DIR/<name>/<keySource>/api-key."""

    name: Name
    type: Literal["OpenAI", "Anthropic"] = "OpenAI"
    base_url: Annotated[str, Field(alias="baseURL", max_length=1024)]
    needs_key: bool = False
    key_source: FileSource | None = None
    """Of `apiKeySecretRef`."""
    auth: Auth | None = None
    headers: Annotated[list[StaticHeader], Field(max_length=16)] = []
    query: Annotated[list[QueryParameter], Field(max_length=8)] = []
    tls: TLSConfig = TLSConfig()
    timeouts: Timeouts = Timeouts()
    max_retries: Annotated[int, Field(ge=0, le=5)] = 2
    retry_budget_percent: Annotated[int, Field(ge=0, le=100)] = 20
    price: ModelPrice | None = None
    """Of the model; absent: unpriced."""


class FallbackConfig(Model):
    """A model that answers when those before it cannot."""

    model: ModelName
    provider: ProviderConfig


class ArmConfig(Model):
    """One arm, compiled: everything needed to serve it."""

    version: ObjectName
    """Name of the operator's copy."""
    digest: Digest
    """Digest of the prompt."""
    prompt: PromptSpec
    provider: ProviderConfig
    fallbacks: Annotated[list[FallbackConfig], Field(max_length=4)] = []
    """In the order of the prompt."""


class RejectedVersion(Model):
    """A version that stays rejected until a person retries it."""

    digest: Digest
    """Digest of the prompt."""
    reason: Annotated[str, Field(max_length=128)]
    """Reason of the decision that rejected it."""
    attempt: Annotated[int, Field(ge=1)] = 1
    """Which attempt was rejected."""
    at: Timestamp
    """When."""


class VersionRef(Model):
    """A version: the operator's copy and its digest."""

    version: ObjectName
    """Name of the operator's copy, a PromptVersion."""
    digest: Digest
    """Digest of the prompt."""


class Attempt(Model):
    """How often a version was tried. Retries use a stricter level."""

    digest: Digest
    attempt: Annotated[int, Field(ge=1, le=1_000_000)]


class Memory(Model):
    """What must survive the loss of the rollout's status."""

    revision: Annotated[int, Field(ge=0)] = 0
    stable: VersionRef | None = None
    previous: VersionRef | None = None
    rejected: Annotated[list[RejectedVersion], Field(max_length=20)] = []
    attempts: Annotated[list[Attempt], Field(max_length=20)] = []
    handled_commands: Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=20)] = []


class ResponseKeys(Model):
    """The keys before and after the one that signs response ids now."""

    next: ResponseKey
    previous: ResponseKey | None = None
    rotated_at: Timestamp
    """Since when the key signs that does."""


class DeliverySpec(Model):
    format_version: Annotated[int, Field(ge=1)] = 1
    """Version of this format."""
    gateway: Name
    """The PromptGateway whose pods serve it."""
    rollout_uid: Annotated[str, Field(alias="rolloutUID", max_length=64)]
    sequence: Annotated[int, Field(ge=1, le=2**53)]
    """Grows with every change. A pod refuses a smaller one."""
    weight: Annotated[int, Field(ge=0, le=100)]
    """Percent of units on the canary arm."""
    salt: Annotated[str, Field(min_length=1, max_length=128)]
    """Hashed with the unit, so that each canary gets other users first."""
    stickiness: Stickiness = Stickiness()
    audience: Audience | None = None
    testers: Testers = []
    reporting: Reporting | None = None
    """Absent: rendered prompts are not counted."""
    stable: ArmConfig
    canary: ArmConfig | None = None
    latency_edges_seconds: Annotated[list[Decimal], Field(max_length=20)] = []
    """Histogram edges that objectives need, besides the default ones."""
    shard_metrics: Annotated[
        list[Annotated[str, Field(max_length=64, pattern=r"^promptrollout_shard_[a-z_]+$")]], Field(max_length=40)
    ] = []
    """The shard metrics that objectives need. Pods export no others."""
    scores: Annotated[list[LabelValue], Field(max_length=20)] = []
    """Names of the scores that objectives use. Pods export them from the start, at zero."""
    response_key: ResponseKey | None = None
    """Signs response ids. Present only while a pod of the gateway cannot read PromptSigningKeys."""
    response_keys: ResponseKeys | None = None
    """Further keys whose ids are valid."""
    retired_at: Timestamp | None = None
    """When the rollout was deleted. Pods serve it for five more minutes, then answer 404."""
    memory: Memory = Memory()


class DeliveryStatus(Model):
    sequence: Annotated[int, Field(ge=0)] = 0
    """The sequence that the counts are for."""
    acknowledged: Annotated[int, Field(ge=0)] = 0
    """Ready pods that confirmed it."""
    total: Annotated[int, Field(ge=0)] = 0
    """Ready pods."""
    conditions: Conditions = []


class PromptDelivery(CustomResource):
    """Compiled configuration of one rollout. Written by the operator only."""

    kind_name = "PromptDelivery"
    plural = "promptdeliveries"
    short_names = ("pdel",)
    written_by_operator = True
    columns = (
        ("Gateway", "string", ".spec.gateway", 0),
        ("Sequence", "integer", ".spec.sequence", 0),
        ("Weight", "integer", ".spec.weight", 0),
        ("Acknowledged", "integer", ".status.acknowledged", 0),
        ("Total", "integer", ".status.total", 0),
        ("Age", "date", ".metadata.creationTimestamp", 0),
    )
    selectable_fields = (".spec.gateway",)

    spec: DeliverySpec
    status: DeliveryStatus | None = None


class HeavyUnit(Model):
    """A unit that many requests come from."""

    unit: int
    """Its hash: nothing else is kept of a unit."""
    requests: int
    """At least so many."""


NO_DIGEST: Final = "sha256:" + "0" * 64
"""As `stable` of a RolloutReport: the pod serves nothing of this rollout."""


class RolloutReport(Model):
    """What one gateway pod says of one rollout, on its admin port under `GET /rollouts`."""

    name: str
    rollout_uid: str = Field(alias="rolloutUID")
    sequence: int
    """The last that was put in service as a whole; 0 for none. Where a newer one's canary cannot be loaded, its stable
    serves alone, and this stays as it was: nothing is acknowledged by half."""
    weight: int
    stable: Digest
    canary: Digest | None = None
    overridden: bool = False
    """The emergency override is in force: everybody gets stable whatever the weight."""
    problem: ShortText | None = None
    """Why a newer sequence could not be loaded (a template, a missing key file); absent if none."""
    problem_sequence: int | None = None
    canary_provider_unreachable: bool = False
    """Connections to the canary's provider fail while stable's works; canary users are answered by stable."""
    unassigned_share_percent: int = 0
    """Of the requests in the last minute: how many came without a stickiness key."""
    circuits: dict[str, str] = {}
    """By `<arm>/<provider>/<model>`: `Closed`, `Open` (not asked, but for a try now and then), or `HalfOpen` (a try
    is under way)."""
    circuit_failures: dict[str, str] = {}
    """By the same names, of those whose last try failed: the endpoint's address, and why."""
    assigned_requests: int = 0
    """Of the last ten minutes: requests with a stickiness key that were assigned to an arm by it."""
    heavy_units: list[HeavyUnit] = []
    """The units with most of them, as far as they are known to have."""
    signing_key: bool | None = None
    """Whether its PromptSigningKey is here; absent: the pod cannot read such objects, or is of a release before. False
    while it is not known whether it can."""
    shards_withheld: bool = False
    """Its shards are not exported here, since those of as many other rollouts are as a pod exports at once."""


class PodProblem(Model):
    """What is wrong in a pod beyond one rollout."""

    reason: Annotated[str, Field(max_length=64)]
    """`NoKeys`, `TokenReviewsForbidden`; with a provider's name as message `ProviderDown`, `ProviderKeyNotBound` (the
    key's Secret does not name its host), `ProviderAddressRefused`, and, though it is used, `ProviderKeyUnbound` (the
    Secret does not say where the key may go)."""
    message: ShortText


class DiedIn(Model):
    """The version that a pod's process was busy with when it died. To be believed where the process ended of itself:
    one that was killed from outside (exit code 137, and not for its memory) was busy with whatever came just then."""

    rollout_uid: str = Field(alias="rolloutUID")
    digest: Digest
    variant: Literal["stable", "canary"]
    at: Timestamp
    """When the next process found it."""


class PodReport(Model):
    """The whole answer of `GET /rollouts[?name=…]`."""

    pod: str
    format_versions: list[int]
    loaded: bool
    """The first list of deliveries is complete."""
    rollouts: list[RolloutReport]
    problems: Annotated[list[PodProblem], Field(max_length=16)] = []
    died_in: Annotated[list[DiedIn], Field(max_length=2)] = []
    """Of the process before this one in the same container; empty where that ended in order."""


class Laggard(Model):
    """A pod that has not acknowledged, and why as far as is known."""

    pod: ObjectName
    reason: Text
