"""PromptGateway: the serving pods of a namespace's rollouts."""

from typing import Annotated

from pydantic import Field

from promptrollout.api.meta import Conditions, CustomResource, Model, Name

Quantity = Annotated[str, Field(max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$")]
ResourceList = Annotated[dict[Annotated[str, Field(max_length=63)], Quantity], Field(max_length=8)]


class Resources(Model):
    requests: ResourceList = {}
    """What the scheduler reserves."""
    limits: ResourceList = {}
    """What a pod may not exceed."""


class Limits(Model):
    """What a pod accepts before it answers 413 or 503."""

    max_request_bytes: Annotated[int, Field(ge=1024, le=64 * 1024 * 1024)] = 4 * 1024 * 1024
    """A larger request is answered with 413."""
    max_concurrent_requests: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Further ones are answered with 503 and Retry-After."""


class GatewaySpec(Model):
    replicas: Annotated[int, Field(ge=1, le=500)] = 2
    """Number of serving pods. With one, an eviction interrupts the service."""
    image: Annotated[str, Field(max_length=512)] | None = None
    """Absent: the operator's own release, taken over only while no rollout of this gateway progresses."""
    resources: Resources = Resources(requests={"cpu": "250m", "memory": "256Mi"}, limits={"memory": "512Mi"})
    """Of each pod."""
    metrics_source: Name = "default"
    """One of the Prometheus sources that the operator was installed with."""
    limits: Limits = Limits()
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
