"""The table of controllers: for each kind who reconciles it, who forgets it, and what else its changes concern."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from promptrollout.api.names import LABEL_GATEWAY
from promptrollout.operator import dependents
from promptrollout.operator.cluster.queue import Key
from promptrollout.operator.declarations import reconcile as declarations
from promptrollout.operator.declarations.reconcile import DeclarationReconciler
from promptrollout.operator.delivery.acknowledge import Acknowledger
from promptrollout.operator.dependents import Dependents
from promptrollout.operator.gateways.reconcile import GatewayReconciler
from promptrollout.operator.rollouts.reconcile import RolloutReconciler

Object = dict[str, Any]
Reconcile = Callable[[Key, Object], Awaitable[None]]
Forget = Callable[[Key], Awaitable[None]]
Observe = Callable[[Key, Object | None, Object | None], None]


@dataclass(frozen=True, slots=True)
class Controller:
    """One kind that is watched."""

    kind: str
    dependents: Dependents
    """Keys to reconcile after a change of an object of this kind."""
    reconcile: Reconcile | None = None
    """Bring about what the object says; None: the operator only reads this kind."""
    forget: Forget | None = None
    """Called by a worker when the object is gone; None: owned objects go with their owner, and nothing else is left."""
    observe: Observe | None = None
    """Called at once with the object before and after each change, for parts that cannot wait for a worker."""


def controllers(
    rollouts: RolloutReconciler,
    gateways: GatewayReconciler,
    declared: DeclarationReconciler,
    acknowledger: Acknowledger,
) -> dict[str, Controller]:
    """By kind: all kinds that are watched."""
    of_declared = {
        "PromptVersion": (dependents.of_version, declarations.version),
        "ModelProvider": (dependents.of_provider, declarations.provider),
        "PromptSLO": (dependents.of_slo, declarations.slo),
    }
    rows = [
        Controller("PromptRollout", dependents.of_rollout, rollouts.reconcile, rollouts.retire),
        Controller(
            "PromptGateway",
            dependents.of_gateway,
            _unless_deleting(gateways.reconcile),
            observe=partial(_gateway_replaced, acknowledger),
        ),
        *(
            Controller(kind, concerned, _unless_deleting(partial(declared.reconcile, declare=declare)))
            for kind, (concerned, declare) in of_declared.items()
        ),
        Controller("PromptDelivery", dependents.of_delivery),
        Controller("PromptSigningKey", dependents.of_signing_key),
        Controller("ConfigMap", dependents.of_overrides),
        Controller("Deployment", dependents.of_deployment),
        Controller("Pod", dependents.of_pod, observe=partial(_pod_changed, acknowledger)),
    ]
    return {row.kind: row for row in rows}


def _unless_deleting(reconcile: Reconcile) -> Reconcile:
    """An object that is being deleted is left alone: its owned objects go with it."""

    async def reconcile_living(key: Key, item: Object) -> None:
        if not item["metadata"].get("deletionTimestamp"):
            await reconcile(key, item)

    return reconcile_living


def _gateway_replaced(acknowledger: Acknowledger, key: Key, before: Object | None, after: Object | None) -> None:
    """What pods of a gateway reported does not hold for a new object of its name."""
    if _uid(before) != _uid(after):
        acknowledger.forget_gateway(key.namespace, key.name)


def _pod_changed(acknowledger: Acknowledger, key: Key, before: Object | None, after: Object | None) -> None:
    for item in (before, after):
        if gateway := ((item or {}).get("metadata", {}).get("labels") or {}).get(LABEL_GATEWAY):
            acknowledger.pods_changed(key.namespace, gateway)


def _uid(item: Object | None) -> str | None:
    return item["metadata"]["uid"] if item is not None else None
