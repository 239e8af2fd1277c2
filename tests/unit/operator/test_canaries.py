"""Whose turn it is when pods of a gateway have failed."""

from typing import Any

from promptrollout.api.names import LABEL_GATEWAY
from promptrollout.api.rollout import Clock, RolloutStatus
from promptrollout.engine.lifecycle.surroundings import TRIAL_SECONDS
from promptrollout.operator.cluster.store import Store
from promptrollout.operator.rollouts.canaries import Canaries
from tests.unit.operator.world import an_object


def canaries(*items: dict[str, Any]) -> Canaries:
    store = Store()
    for item in items:
        store.put(item["kind"], item)
    return Canaries(store)


def rollout(name: str, stage: str = "Loading", **clock: int) -> dict[str, Any]:
    status = {"stage": stage, "clock": clock}
    item = an_object("PromptRollout", name, {"gatewayRef": {"name": "default"}})
    return item | {"kind": "PromptRollout", "status": status}


def test_who_is_tried_keeps_the_turn_and_then_who_waited_longest_has_it() -> None:
    """After a restart the statuses say it."""
    known = canaries(
        rollout("a", suspectedAt=300), rollout("b", suspectedAt=100), rollout("c", suspectedAt=200, trialAt=400)
    )
    assert known.trial("ns", "default", 500) == "c"
    assert known.trial("ns", "default", 400 + TRIAL_SECONDS) == "b", "pods have held out: others may go on"
    known.update("ns", "default", "c", RolloutStatus())
    assert known.trial("ns", "default", 500) == "b"
    assert known.trial("ns", "default", 99) == "", "one that did not use its turn waits for the next"
    known.update("ns", "default", "b", None)
    known.update("ns", "elsewhere", "a", RolloutStatus(clock=Clock(suspected_at=300)))
    assert (known.trial("ns", "default", 500), known.trial("ns", "elsewhere", 500)) == ("", "a")


def test_a_raise_on_trial_is_tried_anew() -> None:
    known = canaries(rollout("a", "Stepping", suspectedAt=100, trialAt=200, stageSince=5000))
    assert known.trial("ns", "default", 5000 + TRIAL_SECONDS - 1) == "a"
    assert known.trial("ns", "default", 5000 + TRIAL_SECONDS) == ""


def test_the_last_raise_is_of_all_canaries_that_meet_users() -> None:
    known = canaries(rollout("a", "Stepping", stageSince=100), rollout("b", "Idle", stageSince=300))
    assert (known.raised_at("ns", "default"), known.raised_at("ns", "elsewhere")) == (100, None)


def test_a_canary_counts_for_the_gateway_that_serves_it() -> None:
    delivery = an_object("PromptDelivery", "a", {}) | {"kind": "PromptDelivery"}
    delivery["metadata"]["labels"] = {LABEL_GATEWAY: "old"}
    known = canaries(rollout("a", "Stepping", stageSince=100), delivery)
    assert (known.raised_at("ns", "default"), known.raised_at("ns", "old")) == (None, 100)
