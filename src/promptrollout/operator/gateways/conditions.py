"""What a PromptGateway's conditions say of its callers and its providers, by its Deployment and by what pods report."""

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
    """What the pods that answered said is wrong with them."""

    pods: int
    problems: tuple[tuple[str, str, int], ...] = ()
    """Reason, message, and how many of the pods say so; in order."""

    @staticmethod
    def of(reports: Iterable[Iterable[PodProblem]]) -> Reported | None:
        """None: no pod answered, so nothing is known."""
        said = [{(problem.reason, problem.message) for problem in report} for report in reports]
        if not said:
            return None
        found = Counter(each for one in said for each in one)
        return Reported(len(said), tuple((reason, text, count) for (reason, text), count in sorted(found.items())))

    def told(self, reason: str) -> list[tuple[str, int]]:
        return [(text, count) for each, text, count in self.problems if each == reason]


def authenticated(spec: GatewaySpec | None, deployment: Object, reported: Reported | None, before: Object) -> Truths:
    """Whether callers must say who they are: by what the pods were told, which is not yet what the spec says where they
    are kept as they are while a rollout is in progress; and whether any can. `before`: the condition as it stands."""
    if spec is None:
        return {}
    auth = spec.auth
    if deployment and (mode := _auth_mode(deployment)) != auth.mode:
        message = (
            f"spec.auth.mode is {auth.mode}, but the pods still run with {mode}; they are replaced when no rollout "
        )
        return {
            ConditionType.AUTHENTICATED: (
                mode != "None",
                ConditionReason.WAITS_FOR_ROLLOUT,
                f"{message}of it is in progress",
            )
        }
    if auth.mode == "None":
        message = "spec.auth.mode is None: whoever reaches the gateway may call it, on the provider's account"
        return {ConditionType.AUTHENTICATED: (False, ConditionReason.AUTHENTICATION_OFF, message)}
    secret = auth.keys_secret_ref.name if auth.keys_secret_ref is not None else ""
    fixes = {
        ConditionReason.NO_KEYS: f"look at Secret {secret}: it is missing, or none of its entries can be used",
        ConditionReason.TOKEN_REVIEWS_FORBIDDEN: "set the chart's value gateway.tokenReviewers, or bind the gateway's "
        "ServiceAccount to a ClusterRole that may create tokenreviews",
    }
    if reported is None and before.get("reason") in fixes:
        return {ConditionType.AUTHENTICATED: (False, str(before["reason"]), str(before.get("message", "")))}
    for reason, fix in fixes.items():
        if reported is not None and (told := reported.told(reason)):
            pods = sum(count for _, count in told)
            return {
                ConditionType.AUTHENTICATED: (
                    False,
                    reason,
                    f"{pods} of {reported.pods} pods let nobody in this way: {fix}",
                )
            }
    told_ways = []
    if auth.mode != "ServiceAccounts" and secret:
        told_ways.append(f"keys of Secret {secret}")
    if auth.mode != "Keys":
        told_ways.append(f"ServiceAccount tokens for the audience {auth.audience}")
    return {ConditionType.AUTHENTICATED: (True, auth.mode, f"callers need one of: {', '.join(told_ways)}")}


def providers_answer(reported: Reported | None, before: Object) -> Truths:
    """Whether the pods get answers from the providers of what they serve. As it stands while nothing is known."""
    if reported is None:
        return _as_it_stands(ConditionType.PROVIDERS_ANSWER, before)
    if refused := _named(reported, ConditionReason.PROVIDER_ADDRESS_REFUSED):
        text = f"gateways may not connect to the address of: {refused}. Allow it by gateway.allowedProviderNetworks"
        return {ConditionType.PROVIDERS_ANSWER: (False, ConditionReason.PROVIDER_ADDRESS_REFUSED, text)}
    if not (down := _named(reported, ConditionReason.PROVIDER_DOWN)):
        return {ConditionType.PROVIDERS_ANSWER: (True, ConditionReason.ANSWERING, "")}
    text = f"cannot be reached, or fail nearly always: {down}. Which versions: `circuits` on GET /rollouts of a pod"
    return {ConditionType.PROVIDERS_ANSWER: (False, ConditionReason.PROVIDER_DOWN, text)}


def provider_keys_bound(reported: Reported | None, before: Object) -> Truths:
    """Whether each key's Secret says to which hosts it may go, and names the one that it is wanted for."""
    kind = ConditionType.PROVIDER_KEYS_BOUND
    if reported is None:
        return _as_it_stands(kind, before)
    if named := _named(reported, ConditionReason.PROVIDER_KEY_NOT_BOUND):
        text = f"not asked, as `hosts` in the Secret of the key does not name the host of baseURL: {named}"
        return {kind: (False, ConditionReason.PROVIDER_KEY_NOT_BOUND, text)}
    if named := _named(reported, ConditionReason.PROVIDER_KEY_UNBOUND):
        text = f"the key's Secret has no data key `hosts`, which a later release requires: {named}"
        return {kind: (False, ConditionReason.PROVIDER_KEY_UNBOUND, text)}
    return {kind: (True, ConditionReason.BOUND, "")}


def _named(reported: Reported, reason: str) -> str:
    """The providers of which pods say so; empty: none."""
    told = reported.told(reason)
    return first_few((f"{name} ({count} of {reported.pods} pods)" for name, count in told), SHOWN)


def _as_it_stands(kind: ConditionType, before: Object) -> Truths:
    known = before.get("status") in ("True", "False")
    said = (before.get("status") == "True", str(before.get("reason", "")), str(before.get("message", "")))
    return {kind: said} if known else {}


def _auth_mode(deployment: Object) -> str:
    """`auth.mode` of its pods."""
    (container, *_) = deployment["spec"]["template"]["spec"]["containers"]
    values = (each.get("value") for each in container.get("env") or [] if each["name"] == variable("auth_mode"))
    return next(values, None) or "None"
