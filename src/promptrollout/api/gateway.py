"""PromptGateway: the serving pods of a namespace's rollouts."""

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, field_validator

from promptrollout.api.meta import Conditions, CustomResource, Model, Name, ObjectName

Quantity = Annotated[str, Field(max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$")]
ResourceList = Annotated[dict[Annotated[str, Field(max_length=63)], Quantity], Field(max_length=8)]


class Resources(Model):
    requests: ResourceList = {}
    """Requests of the container."""
    limits: ResourceList = {}
    """Limits of the container."""


AuthMode = Literal["None", "Keys", "ServiceAccounts", "KeysAndServiceAccounts"]


class Limits(Model):
    """What a pod accepts before it answers 413, 429 or 503."""

    max_request_bytes: Annotated[int, Field(ge=1024, le=64 * 1024 * 1024)] = 4 * 1024 * 1024
    """Largest request body. A larger one gets 413."""
    max_concurrent_requests: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Requests in progress at the same time. Further ones wait in a queue."""
    max_queued_requests: Annotated[int, Field(ge=0, le=100_000)] = 1000
    """Length of the queue. Further requests get 503 with `Retry-After`."""
    max_queue_milliseconds: Annotated[int, Field(ge=1, le=60_000)] = 2000
    """Longest time in the queue. Then the request gets 503 with `Retry-After`."""
    requests_per_minute_per_key: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Rate limit of one key or ServiceAccount, on each pod. Above it: 429 with `Retry-After`. Absent: none."""
    burst_per_key: Annotated[int, Field(ge=1, le=1_000_000)] = 60
    """How many requests of a key may come at once."""


class SecretName(Model):
    """A Secret in the namespace."""

    name: ObjectName
    """Name of the Secret."""


MAX_CALLERS_BYTES: Final = 100_000
"""Of all `serviceAccounts` as JSON."""


class ServiceAccountCallers(Model):
    """ServiceAccounts that may call."""

    namespace: Name
    """Namespace of the ServiceAccounts."""
    name: ObjectName | None = None
    """Name of one ServiceAccount. Absent: all of the namespace."""
    rollouts: Annotated[list[Name], Field(min_length=1, max_length=64)] | None = None
    """Rollouts that they may use. Absent: all of this gateway."""
    tenant: Annotated[str, Field(max_length=63, pattern=r"^[-._a-zA-Z0-9]+$")] | None = None
    """Their tenant. Audiences can match it as the header `x-promptrollout-tenant`."""


class Auth(Model):
    """How callers say who they are."""

    rules: ClassVar = (
        (
            # the server checks the default of the whole, {}, before it fills in the mode's
            "!has(self.mode) || !(self.mode in ['Keys', 'KeysAndServiceAccounts']) || has(self.keysSecretRef)",
            "this mode needs keysSecretRef: the Secret with the hashes of the callers' keys",
        ),
    )

    mode: AuthMode = "None"
    """`None`: no authentication. `Keys`: keys whose hashes are in a Secret. `ServiceAccounts`: tokens of Kubernetes
    ServiceAccounts, which the API server reviews."""
    keys_secret_ref: SecretName | None = None
    """Secret with one entry for each caller. Its lines are `sha256:<hash of a key>`, and optionally `rollouts:` and
    `tenant:`."""
    audience: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._~:/a-zA-Z0-9]+$")] = "promptrollout"
    """Audience of the tokens. Not that of the API server: a gateway could then use its callers' tokens there."""
    service_accounts: Annotated[list[ServiceAccountCallers], Field(max_length=64)] = []
    """Who may call. The first match counts. Empty: all ServiceAccounts of the gateway's namespace."""

    @field_validator("service_accounts")
    @classmethod
    def _fits_a_variable(cls, callers: list[ServiceAccountCallers]) -> list[ServiceAccountCallers]:
        """Pods get them in one environment variable, and Linux starts no process with one of 128 KiB."""
        size = sum(len(each.model_dump_json(by_alias=True)) + 1 for each in callers)
        if size > MAX_CALLERS_BYTES:
            raise ValueError(
                f"{size:,} bytes as JSON, and pods can be given {MAX_CALLERS_BYTES:,}: "
                "list fewer entries or fewer `rollouts`"
            )
        return callers


class GatewaySpec(Model):
    rules: ClassVar = (
        (
            "!has(self.limits) || !has(self.limits.requestsPerMinutePerKey) || (has(self.auth) && has(self.auth.mode) "
            "&& self.auth.mode != 'None')",
            "limits.requestsPerMinutePerKey needs auth.mode: without it callers cannot be told apart",
        ),
    )

    replicas: Annotated[int, Field(ge=1, le=500)] = 2
    """Number of gateway pods. With one, an eviction interrupts the service."""
    image: Annotated[str, Field(max_length=512)] | None = None
    """Image of the pods. Absent: that of the operator, updated only while no rollout of this gateway is in progress."""
    resources: Resources = Resources(requests={"cpu": "250m", "memory": "256Mi"}, limits={"memory": "512Mi"})
    """Resources of each pod."""
    metrics_source: Name = "default"
    """Name of a metrics source in the operator's configuration."""
    limits: Limits = Limits()
    auth: Auth = Auth()
    """Who may call. Off by default; the condition `Authenticated` shows it."""
    drain_seconds: Annotated[int, Field(ge=0, le=3600)] = 30
    """How long a terminating pod may take to finish its requests."""


class GatewayStatus(Model):
    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """The generation of the spec that this status describes."""
    replicas: Annotated[int, Field(ge=0)] = 0
    """Pods of the Deployment."""
    ready_replicas: Annotated[int, Field(ge=0)] = 0
    """Pods that are ready."""
    rollouts: Annotated[int, Field(ge=0)] = 0
    """PromptRollouts that name this gateway."""
    image: Annotated[str, Field(max_length=512)] | None = None
    """Image of the pods."""
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
