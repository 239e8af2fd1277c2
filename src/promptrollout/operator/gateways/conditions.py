"""Conditions of a PromptGateway about its callers and providers, from its Deployment and its pods' reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from promptrollout.api.conditions import ConditionReason, ConditionType
from promptrollout.api.delivery import PodProblem
from promptrollout.api.gateway import GatewaySpec
from promptrollout.api.pod_settings import variable
from promptrollout.api.text import first_few

Object = dict[str, Any]
Truths = dict[ConditionType, tuple[bool, str, str]]

SHOWN = 8


@dataclass(frozen=True, slots=True)
class Reported:
    """Problems that the pods reported, of those that answered."""

    pods: int
    problems: tuple[tuple[str, str, int], ...] = ()
    """Reason, message, and the number of pods that report it; sorted."""

    @staticmethod
    def of(reports: Iterable[Iterable[PodProblem]]) -> Reported | None:
        """None: no pod answered, so nothing is known."""
        reported = [{(problem.reason, problem.message) for problem in report} for report in reports]
        if not reported:
            return None
        found = Counter(each for one in reported for each in one)
        return Reported(len(reported), tuple((reason, text, count) for (reason, text), count in sorted(found.items())))

    def pods_by_subject(self, reason: str) -> list[tuple[str, int]]:
        return [(text, count) for each, text, count in self.problems if each == reason]


def authenticated(spec: GatewaySpec | None, deployment: Object, reported: Reported | None, before: Object) -> Truths:
    """Whether callers must authenticate, and whether any can. What the pods run with counts: it differs from the spec
    while a rollout in progress keeps them from being replaced. `before`: the present condition."""
    if spec is None:
        return {}
    auth = spec.auth
    if deployment and (mode := _auth_mode(deployment)) != auth.mode:
        message = (
            f"spec.auth.mode is {auth.mode}, pods still run with {mode}: "
            "they are replaced once no rollout of this gateway is in progress"
        )
        return {ConditionType.AUTHENTICATED: (mode != "None", ConditionReason.WAITS_FOR_ROLLOUT, message)}
    if auth.mode == "None":
        message = "spec.auth.mode is None: anyone who reaches the gateway can call it and spend provider credit"
        return {ConditionType.AUTHENTICATED: (False, ConditionReason.AUTHENTICATION_OFF, message)}
    secret = auth.keys_secret_ref.name if auth.keys_secret_ref is not None else ""
    fixes = {
        ConditionReason.NO_KEYS: f"keys: Secret {secret} is missing or has no usable entry",
        ConditionReason.TOKEN_REVIEWS_FORBIDDEN: "tokens: set gateway.tokenReviewers in the chart, "
        "or let the gateway's ServiceAccount create tokenreviews",
    }
    if reported is None and before.get("reason") in fixes:
        return {ConditionType.AUTHENTICATED: (False, str(before["reason"]), str(before.get("message", "")))}
    for reason, fix in fixes.items():
        if reported is not None and (subjects := reported.pods_by_subject(reason)):
            pods = sum(count for _, count in subjects)
            message = f"{pods} of {reported.pods} pods reject all {fix}"
            return {ConditionType.AUTHENTICATED: (False, reason, message)}
    accepted = []
    if auth.mode != "ServiceAccounts" and secret:
        accepted.append(f"keys of Secret {secret}")
    if auth.mode != "Keys":
        accepted.append(f"ServiceAccount tokens for the audience {auth.audience}")
    return {ConditionType.AUTHENTICATED: (True, auth.mode, f"callers need one of: {', '.join(accepted)}")}


def providers_answer(reported: Reported | None, before: Object) -> Truths:
    """Whether providers answer the pods. Unchanged while no pod has reported."""
    if reported is None:
        return _unchanged(ConditionType.PROVIDERS_ANSWER, before)
    if refused := _named(reported, ConditionReason.PROVIDER_ADDRESS_REFUSED):
        text = f"address refused: {refused}. Allow it with the chart's value gateway.allowedProviderNetworks"
        return {ConditionType.PROVIDERS_ANSWER: (False, ConditionReason.PROVIDER_ADDRESS_REFUSED, text)}
    if not (down := _named(reported, ConditionReason.PROVIDER_DOWN)):
        return {ConditionType.PROVIDERS_ANSWER: (True, ConditionReason.ANSWERING, "")}
    text = f"unreachable, or nearly all requests fail: {down}. See `circuits` in GET /rollouts of a pod"
    return {ConditionType.PROVIDERS_ANSWER: (False, ConditionReason.PROVIDER_DOWN, text)}


def provider_keys_bound(reported: Reported | None, before: Object) -> Truths:
    """Whether the Secret of each key lists the host that the key is sent to."""
    kind = ConditionType.PROVIDER_KEYS_BOUND
    if reported is None:
        return _unchanged(kind, before)
    if named := _named(reported, ConditionReason.PROVIDER_KEY_NOT_BOUND):
        text = f"key not sent: `hosts` in its Secret does not list the host of baseURL: {named}"
        return {kind: (False, ConditionReason.PROVIDER_KEY_NOT_BOUND, text)}
    if named := _named(reported, ConditionReason.PROVIDER_KEY_UNBOUND):
        text = f"the key's Secret has no data key `hosts`, which a later release requires: {named}"
        return {kind: (False, ConditionReason.PROVIDER_KEY_UNBOUND, text)}
    return {kind: (True, ConditionReason.BOUND, "")}


def _named(reported: Reported, reason: str) -> str:
    """The providers that pods report with this reason; empty: none."""
    providers = reported.pods_by_subject(reason)
    return first_few((f"{name} ({count} of {reported.pods} pods)" for name, count in providers), SHOWN)


def _unchanged(kind: ConditionType, before: Object) -> Truths:
    known = before.get("status") in ("True", "False")
    found = (before.get("status") == "True", str(before.get("reason", "")), str(before.get("message", "")))
    return {kind: found} if known else {}


def _auth_mode(deployment: Object) -> str:
    """`auth.mode` of its pods."""
    (container, *_) = deployment["spec"]["template"]["spec"]["containers"]
    values = (each.get("value") for each in container.get("env") or [] if each["name"] == variable("auth_mode"))
    return next(values, None) or "None"
