"""PromptGateway: the serving pods of a namespace's rollouts."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from promptrollout.api.meta import Conditions, CustomResource, Model, Name, ObjectName

Quantity = Annotated[str, Field(max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$")]
ResourceList = Annotated[dict[Annotated[str, Field(max_length=63)], Quantity], Field(max_length=8)]


class Resources(Model):
    requests: ResourceList = {}
    """What the scheduler reserves."""
    limits: ResourceList = {}
    """What a pod may not exceed."""


class Limits(Model):
    """What a pod accepts before it answers 413, 429 or 503."""

    max_request_bytes: Annotated[int, Field(ge=1024, le=64 * 1024 * 1024)] = 4 * 1024 * 1024
    """A larger request is answered with 413."""
    max_concurrent_requests: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Answered at once; further ones wait for their turn."""
    max_queued_requests: Annotated[int, Field(ge=0, le=100_000)] = 1000
    """Requests that wait. Further ones are answered with 503 and Retry-After."""
    max_queue_milliseconds: Annotated[int, Field(ge=1, le=60_000)] = 2000
    """A request that waited for so long is answered with 503 and Retry-After."""
    requests_per_minute_per_key: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Of one key or ServiceAccount, on each pod; further ones get 429 and Retry-After. Absent: no limit."""
    burst_per_key: Annotated[int, Field(ge=1, le=1_000_000)] = 60
    """How many of these may come at once."""


class SecretName(Model):
    """A Secret in the namespace."""

    name: ObjectName
    """Name of the Secret."""


class ServiceAccountCallers(Model):
    """ServiceAccounts that may call."""

    namespace: Name
    """Theirs."""
    name: ObjectName | None = None
    """Of one ServiceAccount. Absent: all of the namespace."""
    rollouts: Annotated[list[Name], Field(min_length=1, max_length=64)] | None = None
    """All that they may use. Absent: every rollout of this gateway."""
    tenant: Annotated[str, Field(max_length=63, pattern=r"^[-._a-zA-Z0-9]+$")] | None = None
    """Whom they act for; audiences know it as the header x-promptrollout-tenant."""


class Auth(Model):
    """How callers say who they are."""

    rules: ClassVar = (
        (
            # the server checks the default of the whole, {}, before it fills in the mode's
            "!has(self.mode) || !(self.mode in ['Keys', 'KeysAndServiceAccounts']) || has(self.keysSecretRef)",
            "this mode needs keysSecretRef: the Secret with the hashes of the callers' keys",
        ),
    )

    mode: Literal["None", "Keys", "ServiceAccounts", "KeysAndServiceAccounts"] = "None"
    """`None`: whoever reaches the gateway may call it. `Keys`: hashes of keys in a Secret. `ServiceAccounts`: tokens of
    Kubernetes ServiceAccounts, which the API server reviews."""
    keys_secret_ref: SecretName | None = None
    """One entry for each caller, its name as the key: lines of `sha256:<hash of a key>`, and `rollouts:` and `tenant:`
    if it is bound to any."""
    audience: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._~:/a-zA-Z0-9]+$")] = "promptrollout"
    """That tokens must be made for. Not the API server's own, or a gateway could use its callers' tokens there."""
    service_accounts: Annotated[list[ServiceAccountCallers], Field(max_length=64)] = []
    """The first that matches holds. Empty: all ServiceAccounts of the gateway's own namespace."""


class GatewaySpec(Model):
    rules: ClassVar = (
        (
            "!has(self.limits) || !has(self.limits.requestsPerMinutePerKey) || (has(self.auth) && has(self.auth.mode) "
            "&& self.auth.mode != 'None')",
            "limits.requestsPerMinutePerKey needs auth.mode: without it callers cannot be told apart",
        ),
    )

    replicas: Annotated[int, Field(ge=1, le=500)] = 2
    """Number of serving pods. With one, an eviction interrupts the service."""
    image: Annotated[str, Field(max_length=512)] | None = None
    """Absent: the operator's own release, taken over only while no rollout of this gateway progresses."""
    resources: Resources = Resources(requests={"cpu": "250m", "memory": "256Mi"}, limits={"memory": "512Mi"})
    """Of each pod."""
    metrics_source: Name = "default"
    """One of the Prometheus sources that the operator was installed with."""
    limits: Limits = Limits()
    auth: Auth = Auth()
    """Off unless set: the condition Authenticated says so."""
    drain_seconds: Annotated[int, Field(ge=0, le=3600)] = 30
    """How long a terminating pod finishes requests that it already accepted."""


class GatewayStatus(Model):
    observed_generation: Annotated[int, Field(ge=0)] | None = None
    replicas: Annotated[int, Field(ge=0)] = 0
    ready_replicas: Annotated[int, Field(ge=0)] = 0
    rollouts: Annotated[int, Field(ge=0)] = 0
    image: Annotated[str, Field(max_length=512)] | None = None
    conditions: Conditions = []


class PromptGateway(CustomResource):
    """Serving pods."""

    kind_name = "PromptGateway"
    plural = "promptgateways"
    short_names = ("pgw",)
    max_name_length = 40  # its Deployment, Service and pods are named after it
    columns = (
        ("Replicas", "integer", ".status.replicas", 0),
        ("Ready-Replicas", "integer", ".status.readyReplicas", 0),
        ("Rollouts", "integer", ".status.rollouts", 0),
        ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', 0),
        ("Image", "string", ".status.image", 1),
        ("Age", "date", ".metadata.creationTimestamp", 0),
    )

    spec: GatewaySpec = GatewaySpec()
    status: GatewayStatus | None = None
