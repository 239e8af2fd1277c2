"""The input and the output of `plan`, as plain values."""

from dataclasses import dataclass, field

from promptrollout.api.command import Command, MalformedCommand
from promptrollout.api.delivery import Audience, Laggard, Memory, Reporting, RequestMatch, Stickiness, VersionRef
from promptrollout.api.rollout import Decision, RolloutSpec, RolloutStatus, Snapshot
from promptrollout.engine.lifecycle.reasons import SpecProblem
from promptrollout.engine.statistics.evidence import Evidence


@dataclass(frozen=True, slots=True)
class Desired:
    """What the spec asks for, as far as it could be resolved."""

    version: VersionRef | None
    """The owned copy of `template` or of what `versionRef` names; None if that is missing or invalid."""
    baseline: VersionRef | None = None
    snapshot: Snapshot | None = None
    """Steps and objectives as the objects say them now; None if a reference is missing or something is invalid."""
    problems: tuple[SpecProblem, ...] = ()
    """Any of them makes the condition InvalidSpec."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """What the PromptDelivery object says now, and what the ready gateway pods answered about it."""

    sequence: int
    weight: int
    stable: VersionRef
    canary: VersionRef | None
    memory: Memory
    complete: bool
    """Every ready pod (at least one) has confirmed this very sequence."""
    acknowledged: int = 0
    total: int = 0
    laggards: tuple[Laggard, ...] = ()
    unserved: int = 0
    """Ready pods that do not serve the rollout at all: its callers get errors from them."""
    overridden: bool = False
    """The emergency override object exists."""
    canary_provider_unreachable: bool | None = None
    unassigned_share_percent: int | None = None
    """None as above: the old value stays."""
    heavy_key_share_percent: int | None = None
    """Of the requests of the last minutes: the least share of the largest stickiness key. None as above."""


@dataclass(frozen=True, slots=True)
class PodFailure:
    """Pods of the gateway that ended or hang, as the kubelet reports them."""

    times: tuple[int, ...]
    """When, on the metrics source's clock; the latest last."""
    message: str
    """Which pod was the latest, and how."""
    ended_at: int | None = None
    """When one last ended; None: they only fail probes, which also happens on a busy node."""
    named_at: int | None = None
    """When a pod last ended while it was serving this canary."""


@dataclass(frozen=True, slots=True)
class Pods:
    """The gateway's pods, as far as a canary may have caused their failures."""

    failure: PodFailure | None = None
    calm: bool = True
    """All are ready, and none has failed for a while."""
    trial: str = ""
    """The rollout of this gateway that is tried alone now; empty: no canary is suspected."""
    raised_at: int | None = None
    """When one of the gateway's canaries last met its first, or more, users."""


@dataclass(frozen=True, slots=True)
class Facts:
    """One rollout and its surroundings at one moment."""

    name: str
    namespace: str
    uid: str
    generation: int
    spec: RolloutSpec
    status: RolloutStatus
    """As it was last planned (in memory, or from the API server after a restart); empty for a new object."""
    desired: Desired
    delivered: Delivered | None
    """None: no PromptDelivery exists."""
    promoted: VersionRef | None
    """The owned copy that was promoted last, by the mark on the copies: served if all else is lost."""
    evidence: Evidence
    command: Command | MalformedCommand | None = None
    """Of the annotation."""
    frozen: str | None = None
    """Name of a PromptFreeze that holds this rollout."""
    pods: Pods = Pods()
    note: str = ""
    """Shown beside the message; nothing depends on it."""


@dataclass(frozen=True, slots=True)
class DeliveryIntent:
    """What gateway pods should serve. The operator compiles it, numbers it, and writes it if it differs."""

    stable: VersionRef
    canary: VersionRef | None
    weight: int
    salt: str
    stickiness: Stickiness
    audience: Audience | None
    memory: Memory
    testers: tuple[RequestMatch, ...] = ()
    reporting: Reporting | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to write, in this order: status, delivery, events."""

    status: RolloutStatus
    delivery: DeliveryIntent | None
    """None while there is nothing to serve."""
    decisions: tuple[Decision, ...] = ()
    """New ones, oldest first, each to become one Event. They are in `status.history` too."""
    next_seconds: int | None = None
    """Plan again at this time at the latest (pauses, laggards); None: only when something changes."""
    wants_evidence: bool = False
    """Read Prometheus from `status.clock.evaluated_until` (or the start of the revision) on."""
    urgent: bool = False
    """The status must be written now; otherwise only sums changed, and the checkpoint may wait."""
    wants_contact: bool = False
    """Ask the metrics source whether it answers, then plan again: raising the weight waits for it."""
    evict: tuple[str, ...] = field(default=())
    """Pods that failed to confirm a rollback within the deadline: evict them."""
