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
    FIRST_BREACH = "FirstBreach"
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
        _R.INITIAL_VERSION: _normal("The first version serves everybody; there was nothing to compare it with."),
        _R.ROLLOUT_STARTED: _normal(
            "The prompt changed, or a rejected version is retried: pods load it at weight 0. The version served "
            "just before goes straight to 100 %."
        ),
        _R.ROLLOUT_UPDATED: _normal(
            "Steps, objectives, stickiness, audience or reporting were edited during the canary. The message says "
            "what restarts."
        ),
        _R.STEP_COMPLETED: _normal(
            "A weight step has its time and its evidence, or a person approved it without evidence."
        ),
        _R.PAUSE_COMPLETED: _normal("A pause with `durationSeconds` is over."),
        _R.ROLLOUT_COMPLETED: _normal(
            "The new version is promoted. While it bakes the old version stays loaded, and serves the holdback: 5 % of "
            "the users, for comparison."
        ),
        _R.BAKE_COMPLETED: _normal(
            "All users get the new version, and the old one is unloaded. From now on, going back is a new rollout."
        ),
        _R.APPROVAL_REQUIRED: _warning(
            "A step's time is over and evidence is missing, with `onInsufficientTraffic: RequireApproval`.",
            "Read what is missing, then `promote` or `abort`. `promptrollout plan` says what your traffic can show.",
        ),
        _R.INSUFFICIENT_TRAFFIC: _warning(
            "A step's time is over and evidence is missing, with `onInsufficientTraffic: Rollback`: rolled back and "
            "rejected.",
            "Use longer steps or wider margins (`promptrollout plan` computes them), then `retry`.",
        ),
        _R.OBJECTIVE_BREACHED: _warning(
            "The evidence shows that an objective is out of bounds: weight 0 and rejected. Without an earlier "
            "version it is only reported.",
            "Read the numbers in the message and fix the prompt. If something else was the cause, `retry`.",
        ),
        _R.FIRST_BREACH: _warning(
            "An objective is out of bounds for the first time, with `onFirstBreach: WithdrawAndRetry`: weight 0, and "
            "one fresh try after 10 minutes.",
            "Look for an incident that hit this version's requests alone. If the prompt is the cause, `abort`.",
        ),
        _R.WEIGHT_REDUCED: _warning(
            "Both versions violated an absolute bound after a raise: back to the weight before, without a verdict "
            "on the canary.",
            "Look for what both versions share: a quota, a rate limit, a cache.",
        ),
        _R.EVIDENCE_RESTARTED: _warning(
            "This release cannot read the stored evidence of an objective. It is gathered again.",
            "Wait. After a downgrade, upgrade again.",
        ),
        _R.MAX_DURATION_EXCEEDED: _warning(
            "`maxDurationSeconds` of active time are over, with `onTimeout: Rollback`: rolled back and rejected.",
            "See which objective the rollout waited for, change the rules, then `retry`.",
        ),
        _R.CANARY_PROVIDER_UNREACHABLE: _warning(
            "Only the canary's provider is down. The canary's users get stable, and nothing is judged.",
            "Check the provider's address, key and quota.",
        ),
        _R.METRICS_LOST: _warning(
            "The metrics source was unavailable for `metricsLossSeconds` during a canary. `onMetricsLoss` was "
            "applied. Nothing is rejected.",
            "Restore the metrics source, or `abort`.",
        ),
        _R.METRICS_SKIPPED: _warning(
            "The metrics of the rollout's namespace were unreadable for a minute. Those intervals are no evidence. "
            "Comes at most once an hour.",
            "Look for a pod in the namespace with huge or too many series. Set `sampleLimit` of its scrape job.",
        ),
        _R.METRICS_RECOVERED: _normal("The metrics source can be read again."),
        _R.PODS_FAILING: _warning(
            "Gateway pods crashed or hung soon after a canary got users: weight 0 at once. Without proof it is not "
            "rejected, but retried alone.",
            "Read `kubectl logs --previous` of the pod. Fix the prompt, its output schema, or the gateway's memory.",
        ),
        _R.PROVIDER_UNREACHABLE: _warning(
            "Only the canary's provider has been down for 15 minutes: weight 0, not rejected. The rollout restarts "
            "when the provider answers.",
            "Check the provider's address, key and quota.",
        ),
        _R.ROLLBACK_COMPLETED: _normal("All ready pods confirmed weight 0 for the rejected version."),
        _R.CANARY_WITHDRAWN: _normal("All ready pods confirmed weight 0 for a version that is not rejected."),
        _R.ROLLOUT_CANCELLED: _normal(
            "The spec names stable again during the canary: the canary is withdrawn, not rejected."
        ),
        _R.ROLLOUT_SUPERSEDED: _normal(
            "The spec names a third version during the canary: the canary is withdrawn, then the new version starts."
        ),
        _R.EMERGENCY_OVERRIDE: _warning(
            "`promptrollout emergency stable` is in force: everybody gets stable, the canary is rolled back and "
            "rejected.",
            "End it with `promptrollout emergency clear`. If the version was not the cause, `retry`.",
        ),
        _R.ROLLOUT_PAUSED: _normal(
            "Somebody ran `pause`. Nothing advances; a breach still rolls back.", "End it with `resume`."
        ),
        _R.ROLLOUT_RESUMED: _normal("Somebody ran `resume`."),
        _R.PAUSE_PROMOTED: _normal("Somebody ended a pause step with `promote`."),
        _R.STEP_PROMOTED: _normal(
            "`promote` skipped a step's minimum time or, if the step waited for approval, its evidence."
        ),
        _R.FULL_PROMOTION: _warning(
            "Somebody ran `promote --full`: to 100 % without waiting for evidence, and without a holdback.",
            "Watch the new version yourself. `undo` goes back.",
        ),
        _R.ROLLOUT_ABORTED: _warning(
            "Somebody ran `abort`: rolled back and rejected.", "`retry` tries the version again."
        ),
        _R.ROLLOUT_UNDONE: _warning("Somebody ran `undo`: rolled back and rejected.", "Change the manifest, too."),
        _R.ROLLOUT_RETRIED: _normal(
            "Somebody ran `retry`: the version starts again without earlier evidence, at a stricter confidence level."
        ),
        _R.COMMAND_REFUSED: _warning("A command could not be carried out.", "Read the reason in the message."),
        _R.INVALID_SPEC: _warning(
            "The spec, or an object that it names, cannot be used. What is served stays.",
            "The message has path, reason and fix. `promptrollout lint` finds most problems before.",
        ),
        _R.STATUS_RECOVERED: _normal(
            "The status was lost, and rebuilt from the delivery or the owned copies. A canary in progress starts "
            "again.",
            "After a restore, or if the rollout was recreated: nothing. Otherwise find out who removed the status.",
        ),
    }
)
