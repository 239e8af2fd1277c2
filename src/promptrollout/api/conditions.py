"""Types and reasons of the conditions in the status of our kinds: one table, used by the code and by the documentation.

A reason that is also a decision's (`ObjectiveBreached`) is explained there: see `decisions`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from promptrollout.api.decisions import DecisionReason


class ConditionType(StrEnum):
    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    PROGRESSING = "Progressing"
    PAUSED = "Paused"
    COMPLETED = "Completed"
    INVALID_SPEC = "InvalidSpec"
    METRICS_AVAILABLE = "MetricsAvailable"
    DELIVERED = "Delivered"
    INSUFFICIENT_TRAFFIC = "InsufficientTraffic"
    ASSIGNMENT_KEY_MISSING = "AssignmentKeyMissing"
    HEAVY_KEY = "HeavyKey"
    ACKNOWLEDGED = "Acknowledged"
    AUTHENTICATED = "Authenticated"
    PROVIDERS_ANSWER = "ProvidersAnswer"
    PROVIDER_KEYS_BOUND = "ProviderKeysBound"
    TLS_VERIFIED = "TLSVerified"


class ConditionReason(StrEnum):
    """CamelCase, as in the condition. Code compares these, never a message."""

    # of a rollout as a whole
    HEALTHY = "Healthy"
    BAKING = "Baking"
    DELIVERING = "Delivering"
    LOADING = "Loading"
    STEPPING = "Stepping"
    PROMOTING = "Promoting"
    WITHDRAWING = "Withdrawing"
    HELD = "Held"
    PAUSE_STEP = "PauseStep"
    INSUFFICIENT_TRAFFIC = "InsufficientTraffic"
    INVALID_SPEC = "InvalidSpec"
    NOT_SERVED = "NotServed"
    EMERGENCY_OVERRIDE = "EmergencyOverride"
    # of its other conditions
    NOT_STALLED = "NotStalled"
    NOT_PAUSED = "NotPaused"
    COMPLETED = "Completed"
    VALID = "Valid"
    AVAILABLE = "Available"
    METRICS_UNAVAILABLE = "MetricsUnavailable"
    NOT_ANALYSING = "NotAnalysing"
    ACKNOWLEDGED = "Acknowledged"
    WAITING = "Waiting"
    ENOUGH_OR_NOT_DUE = "EnoughOrNotDue"
    KEYS_PRESENT = "KeysPresent"
    KEY_MISSING = "KeyMissing"
    KEYS_SPREAD = "KeysSpread"
    ONE_KEY_DOMINATES = "OneKeyDominates"
    # of deliveries
    CONFIRMED = "Confirmed"
    # of gateways
    WAITING_FOR_PODS = "WaitingForPods"
    UNKNOWN_METRICS_SOURCE = "UnknownMetricsSource"
    OBJECT_IN_THE_WAY = "ObjectInTheWay"
    WAITS_FOR_ROLLOUT = "WaitsForRollout"
    AUTHENTICATION_OFF = "AuthenticationOff"
    NO_KEYS = "NoKeys"
    TOKEN_REVIEWS_FORBIDDEN = "TokenReviewsForbidden"
    KEYS = "Keys"
    SERVICE_ACCOUNTS = "ServiceAccounts"
    KEYS_AND_SERVICE_ACCOUNTS = "KeysAndServiceAccounts"
    ANSWERING = "Answering"
    PROVIDER_DOWN = "ProviderDown"
    PROVIDER_ADDRESS_REFUSED = "ProviderAddressRefused"
    BOUND = "Bound"
    PROVIDER_KEY_NOT_BOUND = "ProviderKeyNotBound"
    PROVIDER_KEY_UNBOUND = "ProviderKeyUnbound"
    # of providers
    SERVED_ELSEWHERE = "ServedElsewhere"
    VERIFIED = "Verified"
    INSECURE_SKIP_VERIFY = "InsecureSkipVerify"


Reason = ConditionReason | DecisionReason


@dataclass(frozen=True, slots=True)
class ConditionRow:
    """One condition of one kind: what True means, and each reason that it can have."""

    meaning: str
    reasons: Mapping[Reason, str]


_R: Final = ConditionReason
_SEE_DECISIONS: Final = "see the reasons of decisions"
_WITHDRAWN: Final[dict[Reason, str]] = dict.fromkeys(
    (
        DecisionReason.OBJECTIVE_BREACHED,
        DecisionReason.MAX_DURATION_EXCEEDED,
        DecisionReason.METRICS_LOST,
        DecisionReason.PODS_FAILING,
        DecisionReason.PROVIDER_UNREACHABLE,
        DecisionReason.ROLLOUT_ABORTED,
        DecisionReason.ROLLOUT_UNDONE,
        DecisionReason.ROLLOUT_CANCELLED,
        DecisionReason.ROLLOUT_SUPERSEDED,
    ),
    _SEE_DECISIONS,
)
"""Why a canary is, or was, taken back. `InsufficientTraffic` and `EmergencyOverride` are among the states below."""
_STATES: Final[dict[Reason, str]] = {
    _R.HEALTHY: "one version serves everybody",
    _R.BAKING: "the new version serves 100 %, and the old one stays loaded",
    _R.DELIVERING: "pods load the only version",
    _R.LOADING: "pods load the canary at weight 0",
    _R.STEPPING: "the canary is in a step",
    _R.PROMOTING: "the canary goes to 100 %",
    _R.WITHDRAWING: "the canary goes to weight 0",
    _R.HELD: "something keeps the canary from advancing: see the message",
    _R.PAUSE_STEP: "the canary is in a pause step",
    _R.INSUFFICIENT_TRAFFIC: "the step's time is over and evidence is missing, or the canary was taken back for it",
    _R.INVALID_SPEC: "the spec, or an object that it names, cannot be used",
    _R.NOT_SERVED: "ready pods exist, but none serves the rollout",
    _R.EMERGENCY_OVERRIDE: "the emergency override sends everybody to stable",
    **_WITHDRAWN,
}
_SPEC: Final[dict[Reason, str]] = {
    _R.VALID: "the spec can be used",
    _R.INVALID_SPEC: "the message has the path and the fix",
}

CONDITIONS: Final[Mapping[str, Mapping[ConditionType, ConditionRow]]] = MappingProxyType(
    {
        "PromptRollout": {
            ConditionType.READY: ConditionRow("the rollout is healthy", _STATES),
            ConditionType.RECONCILING: ConditionRow("the rollout is on its way and not stalled", _STATES),
            ConditionType.STALLED: ConditionRow(
                "a person has to do something", {_R.NOT_STALLED: "the rollout continues by itself", **_STATES}
            ),
            ConditionType.PROGRESSING: ConditionRow("a canary is on its way up or down", _STATES),
            ConditionType.PAUSED: ConditionRow(
                "nothing advances until a person, or the end of a pause step, lets it",
                {_R.NOT_PAUSED: "the rollout is not paused", **_STATES},
            ),
            ConditionType.COMPLETED: ConditionRow(
                "the version that the spec names serves everybody",
                {_R.COMPLETED: "the rollout is complete", **_STATES},
            ),
            ConditionType.INVALID_SPEC: ConditionRow("the spec, or an object that it names, cannot be used", _SPEC),
            ConditionType.METRICS_AVAILABLE: ConditionRow(
                "the metrics of the rollout can be read",
                {
                    _R.AVAILABLE: "the last query was answered",
                    _R.METRICS_UNAVAILABLE: "the message says what failed",
                    _R.NOT_ANALYSING: "no metrics are read now",
                },
            ),
            ConditionType.DELIVERED: ConditionRow(
                "every ready pod confirmed the present configuration",
                {_R.ACKNOWLEDGED: "all confirmed it", _R.WAITING: "the message names the pods that did not"},
            ),
            ConditionType.INSUFFICIENT_TRAFFIC: ConditionRow(
                "a step's time is over and evidence is missing",
                {
                    _R.INSUFFICIENT_TRAFFIC: "the message says what is missing",
                    _R.ENOUGH_OR_NOT_DUE: "there is enough, or the step's time is not over",
                },
            ),
            ConditionType.ASSIGNMENT_KEY_MISSING: ConditionRow(
                "requests come without a stickiness key and get stable",
                {_R.KEY_MISSING: "the message says how many", _R.KEYS_PRESENT: "all requests have a key"},
            ),
            ConditionType.HEAVY_KEY: ConditionRow(
                "one stickiness key makes a large part of the requests",
                {_R.ONE_KEY_DOMINATES: "the message says how large", _R.KEYS_SPREAD: "no key is that large"},
            ),
        },
        "PromptDelivery": {
            ConditionType.ACKNOWLEDGED: ConditionRow(
                "every ready pod confirmed this sequence",
                {_R.CONFIRMED: "all confirmed it", _R.WAITING: "the message names the pods that did not"},
            ),
        },
        "PromptGateway": {
            ConditionType.READY: ConditionRow(
                "all pods are ready",
                {
                    _R.AVAILABLE: "all pods are ready",
                    _R.WAITING_FOR_PODS: "some pods are not ready yet",
                    _R.INVALID_SPEC: "the message has the path and the fix",
                    _R.UNKNOWN_METRICS_SOURCE: "the operator has no metrics source of this name",
                    _R.OBJECT_IN_THE_WAY: "an object of the same name belongs to another owner",
                },
            ),
            ConditionType.AUTHENTICATED: ConditionRow(
                "callers must authenticate",
                {
                    _R.KEYS: "callers need a key",
                    _R.SERVICE_ACCOUNTS: "callers need a ServiceAccount token",
                    _R.KEYS_AND_SERVICE_ACCOUNTS: "callers need a key or a ServiceAccount token",
                    _R.AUTHENTICATION_OFF: "spec.auth.mode is None",
                    _R.WAITS_FOR_ROLLOUT: "spec.auth was changed; pods are replaced when no rollout is in progress",
                    _R.NO_KEYS: "no key can be used: the Secret is missing or has no usable entry",
                    _R.TOKEN_REVIEWS_FORBIDDEN: "the gateway may not create TokenReviews",
                },
            ),
            ConditionType.PROVIDERS_ANSWER: ConditionRow(
                "the providers of what is served answer",
                {
                    _R.ANSWERING: "they answer",
                    _R.PROVIDER_DOWN: "some are unreachable, or nearly all their requests fail",
                    _R.PROVIDER_ADDRESS_REFUSED: "the address of some is refused",
                },
            ),
            ConditionType.PROVIDER_KEYS_BOUND: ConditionRow(
                "each key's Secret lists the host that the key is sent to",
                {
                    _R.BOUND: "all do",
                    _R.PROVIDER_KEY_NOT_BOUND: "a Secret does not list the host of baseURL: the key is not sent",
                    _R.PROVIDER_KEY_UNBOUND: "a Secret has no data key `hosts`",
                },
            ),
        },
        "PromptVersion": {ConditionType.READY: ConditionRow("the prompt can be served", _SPEC)},
        "PromptSLO": {ConditionType.READY: ConditionRow("the objectives can be measured", _SPEC)},
        "ModelProvider": {
            ConditionType.READY: ConditionRow(
                "the spec can be used",
                {**_SPEC, _R.SERVED_ELSEWHERE: "rollouts still use an earlier baseURL until their next version"},
            ),
            ConditionType.TLS_VERIFIED: ConditionRow(
                "the endpoint's certificate is verified; absent without https",
                {_R.VERIFIED: "it is", _R.INSECURE_SKIP_VERIFY: "spec.tls.insecureSkipVerify is set"},
            ),
        },
    }
)
"""By kind and type."""
