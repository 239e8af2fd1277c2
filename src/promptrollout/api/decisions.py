"""The reasons of a rollout's decisions: each is an Event, an entry of `status.history` and a label of a metric.

`DECISIONS` is the one table of them. The engine takes the Event's type from it, and the documentation its rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Literal


class DecisionReason(StrEnum):
    """CamelCase, as in the Event. Code compares these, never a message."""

    INITIAL_VERSION = "InitialVersion"
    ROLLOUT_STARTED = "RolloutStarted"
    ROLLOUT_UPDATED = "RolloutUpdated"
    STEP_COMPLETED = "StepCompleted"
    PAUSE_COMPLETED = "PauseCompleted"
    ROLLOUT_COMPLETED = "RolloutCompleted"
    BAKE_COMPLETED = "BakeCompleted"
    APPROVAL_REQUIRED = "ApprovalRequired"
    INSUFFICIENT_TRAFFIC = "InsufficientTraffic"
    OBJECTIVE_BREACHED = "ObjectiveBreached"
    WEIGHT_REDUCED = "WeightReduced"
    EVIDENCE_RESTARTED = "EvidenceRestarted"
    MAX_DURATION_EXCEEDED = "MaxDurationExceeded"
    CANARY_PROVIDER_UNREACHABLE = "CanaryProviderUnreachable"
    METRICS_LOST = "MetricsLost"
    METRICS_SKIPPED = "MetricsSkipped"
    METRICS_RECOVERED = "MetricsRecovered"
    PODS_FAILING = "PodsFailing"
    PROVIDER_UNREACHABLE = "ProviderUnreachable"
    ROLLBACK_COMPLETED = "RollbackCompleted"
    CANARY_WITHDRAWN = "CanaryWithdrawn"
    ROLLOUT_CANCELLED = "RolloutCancelled"
    ROLLOUT_SUPERSEDED = "RolloutSuperseded"
    EMERGENCY_OVERRIDE = "EmergencyOverride"
    ROLLOUT_PAUSED = "RolloutPaused"
    ROLLOUT_RESUMED = "RolloutResumed"
    PAUSE_PROMOTED = "PausePromoted"
    STEP_PROMOTED = "StepPromoted"
    FULL_PROMOTION = "FullPromotion"
    ROLLOUT_ABORTED = "RolloutAborted"
    ROLLOUT_UNDONE = "RolloutUndone"
    ROLLOUT_RETRIED = "RolloutRetried"
    COMMAND_REFUSED = "CommandRefused"
    INVALID_SPEC = "InvalidSpec"
    STATUS_RECOVERED = "StatusRecovered"


@dataclass(frozen=True, slots=True)
class Explanation:
    """One row of the table."""

    type: Literal["Normal", "Warning"]
    """Of the Event."""
    meaning: str
    action: str = ""
    """What the reader should do; empty: nothing."""


def _normal(meaning: str, action: str = "") -> Explanation:
    return Explanation("Normal", meaning, action)


def _warning(meaning: str, action: str = "") -> Explanation:
    return Explanation("Warning", meaning, action)


_R: Final = DecisionReason

DECISIONS: Final[Mapping[DecisionReason, Explanation]] = MappingProxyType(
    {
        _R.INITIAL_VERSION: _normal(
            "The first version serves everybody. There was no other version to compare it with."
        ),
        _R.ROLLOUT_STARTED: _normal(
            "The prompt changed, or a rejected version is tried again: pods load it at weight 0. A version that was "
            "served just before goes straight to 100 %."
        ),
        _R.ROLLOUT_UPDATED: _normal(
            "Somebody edited steps, objectives, stickiness, audience or reporting during the canary. The message says "
            "what starts again."
        ),
        _R.STEP_COMPLETED: _normal(
            "A weight step has its time and its evidence, or a person approved it without enough evidence."
        ),
        _R.PAUSE_COMPLETED: _normal("A pause with `durationSeconds` is over."),
        _R.ROLLOUT_COMPLETED: _normal(
            "The new version serves everybody. The old version stays loaded while the new one bakes."
        ),
        _R.BAKE_COMPLETED: _normal("The old version is unloaded: from here on, going back is a new rollout."),
        _R.APPROVAL_REQUIRED: _warning(
            "A step's time is up and evidence is missing, with `onInsufficientTraffic: RequireApproval`.",
            "Read what is missing, then `promote` or `abort`. If it happens again, ask `promptrollout plan` what this "
            "traffic can show.",
        ),
        _R.INSUFFICIENT_TRAFFIC: _warning(
            "A step's time is up and evidence is missing, with `onInsufficientTraffic: Rollback`: rolled back and "
            "rejected.",
            "Use longer steps or wider margins (see `promptrollout plan`), then `retry`.",
        ),
        _R.OBJECTIVE_BREACHED: _warning(
            "The evidence shows that an objective is out of bounds: weight 0 and rejected. Without an earlier version "
            "the Event only reports it.",
            "Read the numbers of the row and fix the prompt; `retry` if something else caused it.",
        ),
        _R.WEIGHT_REDUCED: _warning(
            "Both versions crossed an absolute bound right after the weight was raised: back to the weight before, no "
            "verdict on the canary.",
            "Look for what both versions share: a quota, a rate limit, a cache.",
        ),
        _R.EVIDENCE_RESTARTED: _warning(
            "This release cannot read the stored evidence of an objective: it starts from no evidence.",
            "Wait. After a downgrade, upgrade again.",
        ),
        _R.MAX_DURATION_EXCEEDED: _warning(
            "`maxDurationSeconds` of active time are over, with `onTimeout: Rollback`: rolled back and rejected.",
            "See which objective the rollout waited for; change the rules, then `retry`.",
        ),
        _R.CANARY_PROVIDER_UNREACHABLE: _warning(
            "Only the canary's provider fails to answer. Stable answers its users, and nothing is judged.",
            "Check the provider's address, key and quota.",
        ),
        _R.METRICS_LOST: _warning(
            "The metrics source could not be read for `metricsLossSeconds` while users met the canary. `onMetricsLoss` "
            "says what happened to the weight. The version is not rejected.",
            "Bring the metrics source back, or `abort`.",
        ),
        _R.METRICS_SKIPPED: _warning(
            "At most once an hour. The metrics of the rollout's namespace could not be read for a minute (too many, "
            "too slow, or not numbers), though the metrics source answers. Those intervals are no evidence; later "
            "ones are read.",
            "Look for a pod in the namespace that exports huge or very many series; set `sampleLimit` of its scrape "
            "job.",
        ),
        _R.METRICS_RECOVERED: _normal("The metrics source can be read again."),
        _R.PODS_FAILING: _warning(
            "Gateway pods ended or hang soon after users met the canary: weight 0 at once, and no pod loads it. The "
            "first time nothing is rejected. All canaries of the gateway that began, or were raised, in the last 15 "
            "minutes are rolled back, and tried again one at a time, each alone for 5 minutes. A canary is rejected if "
            "pods end while it is tried alone, or if a pod was serving it when it crashed.",
            "Read the pod's last log (`kubectl logs --previous`); fix the prompt, its output schema or the gateway's "
            "memory.",
        ),
        _R.PROVIDER_UNREACHABLE: _warning(
            "Only the canary's provider has failed for 15 minutes: weight 0, not rejected. The rollout starts over "
            "when the provider answers.",
            "Check the provider's address, key and quota.",
        ),
        _R.ROLLBACK_COMPLETED: _normal("All ready pods confirmed weight 0 for the rejected version."),
        _R.CANARY_WITHDRAWN: _normal("All ready pods confirmed weight 0 for a version that is not rejected."),
        _R.ROLLOUT_CANCELLED: _normal(
            "The spec names stable again during the canary: the canary is withdrawn, not rejected."
        ),
        _R.ROLLOUT_SUPERSEDED: _normal(
            "The spec names a third version during the canary: the canary is withdrawn, then the new version begins."
        ),
        _R.EMERGENCY_OVERRIDE: _warning(
            "`promptrollout emergency stable` sends everybody to stable: the canary is withdrawn and rejected.",
            "End it with `promptrollout emergency clear`, then `retry` if the version was not the cause.",
        ),
        _R.ROLLOUT_PAUSED: _normal(
            "A person paused the rollout: nothing advances, a breach still rolls back.", "`resume`"
        ),
        _R.ROLLOUT_RESUMED: _normal("A person resumed the rollout."),
        _R.PAUSE_PROMOTED: _normal("A person ended a pause step with `promote`."),
        _R.STEP_PROMOTED: _normal(
            "`promote` skipped a step's minimum time or, where the step waited for approval, its evidence."
        ),
        _R.FULL_PROMOTION: _warning(
            "`promote --full`: to 100 % without waiting for evidence.", "Watch it yourself; `undo` takes it back."
        ),
        _R.ROLLOUT_ABORTED: _warning(
            "A person aborted the rollout: rolled back and rejected.", "`retry` tries it again."
        ),
        _R.ROLLOUT_UNDONE: _warning(
            "A person undid the rollout: rolled back and rejected.", "Change the manifest too, where it is kept."
        ),
        _R.ROLLOUT_RETRIED: _normal(
            "A person retried a rejected version: from no evidence, at a stricter confidence level."
        ),
        _R.COMMAND_REFUSED: _warning("A command was refused.", "The message says why."),
        _R.INVALID_SPEC: _warning(
            "The spec, or an object that it names, cannot be used. What is served stays.",
            "The message has path, reason and fix; `promptrollout lint` finds most problems beforehand.",
        ),
        _R.STATUS_RECOVERED: _normal(
            "The status was lost and rebuilt from the delivery or from the owned copies.",
            "Find out who removed it. A canary in progress begins again.",
        ),
    }
)
