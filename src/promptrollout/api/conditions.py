"""Types and reasons of the conditions in the status of our kinds: one table, used by the code and by the documentation.

A reason that is also a decision's (`ObjectiveBreached`) is explained in the table of `decisions`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from promptrollout.api.decisions import DECISIONS, DecisionReason


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
    """One condition of one kind: what it says when it is True (a clause), and each reason it can have (sentences)."""

    meaning: str
    reasons: Mapping[Reason, str]


_R: Final = ConditionReason
_WITHDRAWN: Final[dict[Reason, str]] = {
    reason: DECISIONS[reason].meaning
    for reason in (
        DecisionReason.OBJECTIVE_BREACHED,
        DecisionReason.FIRST_BREACH,
        DecisionReason.MAX_DURATION_EXCEEDED,
        DecisionReason.METRICS_LOST,
        DecisionReason.PODS_FAILING,
        DecisionReason.PROVIDER_UNREACHABLE,
        DecisionReason.ROLLOUT_ABORTED,
        DecisionReason.ROLLOUT_UNDONE,
        DecisionReason.ROLLOUT_CANCELLED,
        DecisionReason.ROLLOUT_SUPERSEDED,
    )
}
"""Why a canary is, or was, taken back. `InsufficientTraffic` and `EmergencyOverride` are among the states below."""
ROLLOUT_STATES: Final[Mapping[Reason, str]] = MappingProxyType(
    {
        _R.HEALTHY: "One version serves everybody.",
        _R.BAKING: "The new version is promoted. The old one stays loaded for `bakeSeconds`, and serves the holdback.",
        _R.DELIVERING: "Gateway pods load the only version.",
        _R.LOADING: "Gateway pods load the canary at weight 0.",
        _R.STEPPING: "The canary is in a step.",
        _R.PROMOTING: "The canary goes to 100 %, or to all users but the holdback.",
        _R.WITHDRAWING: "The canary goes to weight 0.",
        _R.HELD: "Something keeps the canary from advancing. The message says what.",
        _R.PAUSE_STEP: "The canary is in a pause step.",
        _R.INSUFFICIENT_TRAFFIC: "Evidence is missing at the end of a step, or the canary was rolled back for that.",
        _R.INVALID_SPEC: "The spec, or an object that it names, cannot be used. What is served stays.",
        _R.NOT_SERVED: "No ready gateway pod can serve the rollout.",
        _R.EMERGENCY_OVERRIDE: "`promptrollout emergency stable` is in force, or the canary was rolled back by it.",
        **_WITHDRAWN,
    }
)
"""What a rollout as a whole is in; several conditions have it as their reason."""
_SPEC: Final[dict[Reason, str]] = {
    _R.VALID: "The spec can be used.",
    _R.INVALID_SPEC: "The spec, or an object that it names, cannot be used. The message has path, reason and fix.",
}

CONDITIONS: Final[Mapping[str, Mapping[ConditionType, ConditionRow]]] = MappingProxyType(
    {
        "PromptRollout": {
            ConditionType.READY: ConditionRow(
                "the version that the spec asks for serves all users but a holdback", ROLLOUT_STATES
            ),
            ConditionType.RECONCILING: ConditionRow("a canary is in progress, paused or held", ROLLOUT_STATES),
            ConditionType.STALLED: ConditionRow(
                "a person has to act", {_R.NOT_STALLED: "No action is needed.", **ROLLOUT_STATES}
            ),
            ConditionType.PROGRESSING: ConditionRow(
                "a canary is in progress, and neither paused nor held by a person", ROLLOUT_STATES
            ),
            ConditionType.PAUSED: ConditionRow(
                "the rollout waits for a person, the end of a pause step, or a valid spec",
                {_R.NOT_PAUSED: "The rollout is not paused.", **ROLLOUT_STATES},
            ),
            ConditionType.COMPLETED: ConditionRow(
                "the last version was promoted and nothing else is in progress",
                {_R.COMPLETED: "The version that the spec names serves all users but a holdback.", **ROLLOUT_STATES},
            ),
            ConditionType.INVALID_SPEC: ConditionRow(
                "the spec, or an object that it names, cannot be used; what is served stays", _SPEC
            ),
            ConditionType.METRICS_AVAILABLE: ConditionRow(
                "the metrics source answers",
                {
                    _R.AVAILABLE: "The last query was answered.",
                    _R.METRICS_UNAVAILABLE: "The message has the answer of the metrics source.",
                    _R.NOT_ANALYSING: "The condition is Unknown while no canary is judged.",
                },
            ),
            ConditionType.DELIVERED: ConditionRow(
                "every ready gateway pod has confirmed the current configuration",
                {
                    _R.ACKNOWLEDGED: "All have confirmed it.",
                    _R.WAITING: "The message names pods that have not, and what they report.",
                },
            ),
            ConditionType.INSUFFICIENT_TRAFFIC: ConditionRow(
                "a step's time is over and evidence is missing",
                {
                    _R.INSUFFICIENT_TRAFFIC: "The message says what is missing.",
                    _R.ENOUGH_OR_NOT_DUE: "There is enough evidence, or the step's time is not over.",
                },
            ),
            ConditionType.ASSIGNMENT_KEY_MISSING: ConditionRow(
                "requests without a stickiness key get stable and are not part of the analysis",
                {_R.KEY_MISSING: "The message says how many.", _R.KEYS_PRESENT: "All requests have a key."},
            ),
            ConditionType.HEAVY_KEY: ConditionRow(
                "one stickiness key has more than 20 % of the requests; nothing advances",
                {_R.ONE_KEY_DOMINATES: "The message says how much.", _R.KEYS_SPREAD: "No key has that many."},
            ),
        },
        "PromptGateway": {
            ConditionType.READY: ConditionRow(
                "all pods are ready",
                {
                    _R.AVAILABLE: "All pods are ready.",
                    _R.WAITING_FOR_PODS: "Some pods are not ready yet.",
                    _R.INVALID_SPEC: "The spec cannot be used. The message has path, reason and fix.",
                    _R.UNKNOWN_METRICS_SOURCE: "The operator has no metrics source of the name in `metricsSource`.",
                    _R.OBJECT_IN_THE_WAY: "An object with a name that the operator needs has another owner.",
                },
            ),
            ConditionType.AUTHENTICATED: ConditionRow(
                "callers must authenticate",
                {
                    _R.KEYS: "Callers need a key.",
                    _R.SERVICE_ACCOUNTS: "Callers need a ServiceAccount token.",
                    _R.KEYS_AND_SERVICE_ACCOUNTS: "Callers need a key or a ServiceAccount token.",
                    _R.AUTHENTICATION_OFF: "`auth.mode` is `None`: everybody who reaches the gateway may call it.",
                    _R.NO_KEYS: "No caller key is configured, so every request gets 401.",
                    _R.TOKEN_REVIEWS_FORBIDDEN: "The gateway may not review ServiceAccount tokens.",
                    _R.WAITS_FOR_ROLLOUT: "The pods still run with the previous mode. They are replaced when no "
                    "rollout is in progress.",
                },
            ),
            ConditionType.PROVIDERS_ANSWER: ConditionRow(
                "pods reach the providers of what they serve",
                {
                    _R.ANSWERING: "All providers answer.",
                    _R.PROVIDER_DOWN: "A provider cannot be reached, or fails nearly always.",
                    _R.PROVIDER_ADDRESS_REFUSED: "A provider's address is one that gateways do not connect to.",
                },
            ),
            ConditionType.PROVIDER_KEYS_BOUND: ConditionRow(
                "each provider key's Secret names the provider's host",
                {
                    _R.BOUND: "All do.",
                    _R.PROVIDER_KEY_NOT_BOUND: "`hosts` of a Secret does not name the provider's host. The provider "
                    "is not called.",
                    _R.PROVIDER_KEY_UNBOUND: "A Secret has no `hosts`. The key is still used in this release.",
                },
            ),
        },
        "ModelProvider": {
            ConditionType.READY: ConditionRow(
                "the spec can be used",
                {
                    **_SPEC,
                    _R.SERVED_ELSEWHERE: "The object was deleted and recreated with another URL. Rollouts stay at the "
                    "old URL until their next version.",
                },
            ),
            ConditionType.TLS_VERIFIED: ConditionRow(
                "the endpoint's certificate is verified; absent for `http:` URLs",
                {
                    _R.VERIFIED: "The certificate is verified.",
                    _R.INSECURE_SKIP_VERIFY: "`tls.insecureSkipVerify` is set.",
                },
            ),
        },
        "PromptVersion": {ConditionType.READY: ConditionRow("the prompt can be served", _SPEC)},
        "PromptSLO": {ConditionType.READY: ConditionRow("the objectives can be measured", _SPEC)},
        "PromptDelivery": {
            ConditionType.ACKNOWLEDGED: ConditionRow(
                "every ready pod confirmed this sequence",
                {
                    _R.CONFIRMED: "All have confirmed it.",
                    _R.WAITING: "The message names pods that have not, and what they report.",
                },
            ),
        },
    }
)
"""By kind and type."""
