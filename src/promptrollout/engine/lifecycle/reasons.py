"""Why something does not happen, as values: holds, refusals, problems of a spec, missing evidence. See `messages`."""

from dataclasses import dataclass
from enum import StrEnum


class HoldReason(StrEnum):
    SPEC_PAUSED = "SpecPaused"
    PAUSED = "Paused"
    FROZEN = "Frozen"
    INVALID_SPEC = "InvalidSpec"
    VERSION_MISSING = "VersionMissing"
    METRICS_UNAVAILABLE = "MetricsUnavailable"
    RETRIES_AFTER_BREACH = "RetriesAfterBreach"
    WAITS_FOR_CALM_PODS = "WaitsForCalmPods"
    WAITS_FOR_OTHER_TRIAL = "WaitsForOtherTrial"
    OTHER_ON_TRIAL = "OtherOnTrial"
    CANARY_PROVIDER_UNREACHABLE = "CanaryProviderUnreachable"
    STABLE_FAILS = "StableFails"
    EVIDENCE_BEHIND = "EvidenceBehind"
    NOTHING_MEASURED = "NothingMeasured"
    SAMPLE_RATIO_MISMATCH = "SampleRatioMismatch"
    HEAVY_KEY = "HeavyKey"
    MAX_DURATION_EXCEEDED = "MaxDurationExceeded"


@dataclass(frozen=True, slots=True)
class Hold:
    """One thing that keeps a rollout from advancing. A breach rolls back through all of them."""

    reason: HoldReason
    subject: str = ""
    """What it is about: the name of the PromptFreeze or of the other rollout, or what another part says of it."""
    seconds: int = 0
    """A length or, with NOTHING_MEASURED, a time since the epoch."""

    @property
    def is_pause(self) -> bool:
        """A person decided that nothing advances."""
        return self.reason in (HoldReason.SPEC_PAUSED, HoldReason.PAUSED, HoldReason.FROZEN)


class RefusalReason(StrEnum):
    OTHER_OBJECT = "OtherObject"
    OTHER_ATTEMPT = "OtherAttempt"
    OTHER_STEP = "OtherStep"
    OVERRIDDEN = "Overridden"
    PAUSED = "Paused"
    ALREADY_PAUSED = "AlreadyPaused"
    NOT_PAUSED = "NotPaused"
    SPEC_PAUSED = "SpecPaused"
    FROZEN = "Frozen"
    INVALID_SPEC = "InvalidSpec"
    METRICS_UNAVAILABLE = "MetricsUnavailable"
    NO_STEP = "NoStep"
    NO_CANARY = "NoCanary"
    NOT_REJECTED = "NotRejected"
    ROLLBACK_UNCONFIRMED = "RollbackUnconfirmed"
    ROLLBACK_IN_PROGRESS = "RollbackInProgress"
    NO_EARLIER_VERSION = "NoEarlierVersion"
    EARLIER_VERSION_REJECTED = "EarlierVersionRejected"
    NO_EARLIER_REVISION = "NoEarlierRevision"
    ALREADY_UNDONE = "AlreadyUndone"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a command is not carried out."""

    reason: RefusalReason
    subject: str = ""
    """What it is about: an object's name, a version, or what another part says of it."""
    other: str = ""
    """With ALREADY_UNDONE: the version that serves; with OVERRIDDEN: the namespace."""
    given: tuple[int, ...] = ()
    """With OTHER_ATTEMPT revision and attempt, with OTHER_STEP the step, that the command was given at."""
    present: tuple[int, ...] = ()
    """The same as they are now."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in the spec, or in what it names, that cannot be used."""

    path: str
    """Empty: it is not in a field."""
    reason: str
    """With the fix."""


@dataclass(frozen=True, slots=True)
class MissingObject:
    """The spec names an object that does not exist."""

    path: str
    kind: str
    name: str
    namespace: str


SpecProblem = Problem | MissingObject


class Missing(StrEnum):
    SAMPLES = "Samples"
    STEP_SAMPLES = "StepSamples"
    COMPARISON = "Comparison"
    ESTIMATE = "Estimate"
    PROOF = "Proof"


@dataclass(frozen=True, slots=True)
class MissingEvidence:
    """What one objective needs before the present step may pass."""

    objective: str
    what: Missing
    have: int = 0
    need: int = 0
    text: str = ""
    """What the step's own samples say."""
