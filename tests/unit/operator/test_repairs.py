"""Refused copies, lost labels and moved gateways: what runs goes on, and is put right when that is possible."""

import dataclasses

import pytest
from kubernetes.aio.client.exceptions import ApiException

from promptrollout.api.delivery import Laggard
from promptrollout.api.rollout import RolloutStatus
from promptrollout.operator.delivery.compile import gateway_held, read
from promptrollout.operator.delivery.confirmations import Acknowledgement
from promptrollout.operator.rollouts.resolve import resolve
from tests.unit.operator.test_reconcile import KEY, SPEC, World, in_canary
from tests.unit.operator.world import PROMPT, an_object, rollout_spec, store_with

COPY = ("PromptVersion", "create")
OTHER = {"gatewayRef": {"name": "other"}}
CANARY = {"template": PROMPT | {"model": "large"}}


def invalid(status: RolloutStatus) -> str:
    return next((c.message for c in status.conditions if c.type == "InvalidSpec" and c.status == "True"), "")


async def test_words_in_a_refusal_do_not_make_it_a_namespace_that_is_deleted() -> None:
    world = await in_canary()
    world.api.refuse[COPY], world.api.message = 403, "policy jobs: the queue is being terminated"
    world.edit(SPEC | {"template": PROMPT | {"model": "third"}})
    await world.reconcile()
    assert "the queue is being terminated" in invalid(world.status())
    assert world.status().weight == 10


async def test_nothing_is_planned_in_a_namespace_that_is_deleted() -> None:
    world = await in_canary()
    world.api.refuse[COPY], world.api.causes = 403, [{"reason": "NamespaceTerminating"}]
    world.edit(SPEC | {"template": PROMPT | {"model": "third"}})
    with pytest.raises(ApiException):
        await world.reconcile()
    assert invalid(world.status()) == ""


@pytest.mark.parametrize("code", [403, 422, 500])
async def test_a_refused_copy_is_a_problem_and_plans_go_on(code: int) -> None:
    world = await in_canary()
    world.api.refuse[COPY] = code
    world.edit(SPEC | {"template": PROMPT | {"model": "third"}})
    world.api.writes.clear()
    await world.reconcile(3)
    status = world.status()
    assert f"cannot be created: HTTP {code}: refused" in invalid(status)
    assert (status.stage, status.weight) == ("Stepping", 10)
    assert world.api.writes.count(COPY) == 1
    world.now += 1.1
    world.queue.ripen()
    assert world.queue.depth >= 1
    await world.reconcile(2)
    assert world.api.writes.count(COPY) == 2
    world.now += 1.1
    await world.reconcile()
    assert world.api.writes.count(COPY) == 2, "the second pause is longer"
    world.edit(SPEC)
    await world.reconcile(4)
    assert (world.status().stage, invalid(world.status())) == ("Idle", "")
    del world.api.refuse[COPY]
    world.edit(SPEC | CANARY)
    await world.reconcile(6)
    assert world.status().stage == "Stepping"


async def test_a_copy_in_use_that_cannot_be_made_again_stops_no_plan() -> None:
    world = await in_canary()
    world.api.refuse[COPY] = 403
    stable = world.status().stable
    assert stable is not None
    item = world.store.get("PromptVersion", "ns", stable.version)
    assert item is not None
    del world.api.objects["PromptVersion", stable.version]
    world.store.remove("PromptVersion", "ns", stable.version, item["metadata"]["uid"])
    await world.reconcile(2)
    assert stable.version in invalid(world.status())
    world.edit(SPEC | {"template": PROMPT | {"model": "third"}})
    await world.reconcile(2)
    assert (world.status().stage, world.status().weight) == ("Stepping", 10)
    del world.api.refuse[COPY]
    world.now += 100
    await world.reconcile(2)
    assert ("PromptVersion", stable.version) in world.api.objects


async def test_a_delivery_without_its_labels_is_written_again() -> None:
    world = World()
    await world.reconcile(4)
    before = world.api.objects["PromptDelivery", "app"]
    labels = {"promptrollout.dev/rollout": "app"}
    world.api._written("PromptDelivery", "edit", before | {"metadata": before["metadata"] | {"labels": labels}})
    world.api.writes.clear()
    await world.reconcile(3)
    after = world.api.objects["PromptDelivery", "app"]
    assert (after["metadata"]["labels"], after["spec"]) == (before["metadata"]["labels"], before["spec"])
    assert world.api.writes == [("PromptDelivery", "apply")]


async def test_a_gateway_is_changed_when_no_canary_runs() -> None:
    world = await in_canary()
    other = an_object("PromptGateway", "other", {"metricsSource": "elsewhere"})
    world.api.objects["PromptGateway", "other"] = other
    world.edit(SPEC | CANARY | OTHER)
    await world.reconcile(3)
    assert world.api.objects["PromptDelivery", "app"]["spec"]["gateway"] == "default"
    assert world.status().message.endswith("; gateway default keeps serving it until the canary ends, then other")
    world.edit(SPEC | OTHER)
    await world.reconcile(4)
    assert world.status().stage == "Idle"
    delivery = world.api.objects["PromptDelivery", "app"]
    assert (delivery["spec"]["gateway"], delivery["spec"].get("canary")) == ("other", None)
    assert delivery["metadata"]["labels"]["promptrollout.dev/gateway"] == "other"
    assert "until no canary runs" not in world.status().message


async def test_a_gateway_that_is_gone_holds_nothing() -> None:
    world = await in_canary()
    spec, store = rollout_spec(**OTHER), store_with()
    existing = read(world.api.objects["PromptDelivery", "app"])
    assert existing is not None
    uid = world.api.objects["PromptRollout", "app"]["metadata"]["uid"]
    assert gateway_held("ns", uid, spec, "Stepping", existing, store) == "default"
    assert gateway_held("ns", uid, spec, "Idle", existing, store) == ""
    assert gateway_held("ns", "another", spec, "Baking", existing, store) == ""
    assert gateway_held("ns", uid, rollout_spec(), "Stepping", existing, store) == ""
    store.remove("PromptGateway", "ns", "default", "PromptGateway-default")
    assert gateway_held("ns", uid, spec, "Stepping", existing, store) == ""


def test_metrics_are_read_where_the_serving_gateway_says() -> None:
    store = store_with(an_object("PromptGateway", "other", {"metricsSource": "elsewhere"}))
    sources = {"default", "elsewhere"}
    assert resolve("ns", "app", rollout_spec(**OTHER), None, store, sources).metrics_source == "elsewhere"
    assert resolve("ns", "app", rollout_spec(**OTHER), None, store, sources, "default").metrics_source == "default"


async def test_what_is_known_of_missing_keys_stays_while_nobody_is_asked() -> None:
    world = await in_canary()
    item = world.store.get(*KEY)
    assert item is not None
    said = world.pods.said
    assert said is not None
    world.pods.said = dataclasses.replace(said, unassigned_share_percent=7, heavy_key_share_percent=33)
    await world.reconcile(2)
    heavy = next(c for c in world.status().conditions if c.type == "HeavyKey")
    assert (heavy.status, heavy.message[:32]) == ("True", "one stickiness key sends 33 % of")
    condition = next(c for c in world.status().conditions if c.type == "AssignmentKeyMissing")
    assert (condition.status, condition.message[:3]) == ("True", "7 %")
    world.start()
    world.pods.said = None
    world.api.writes.clear()
    await world.reconcile(2)
    assert ("PromptRollout", "status") not in world.api.writes
    assert next(c for c in world.status().conditions if c.type == "AssignmentKeyMissing") == condition


@pytest.mark.parametrize("ahead", [0, 8])
async def test_a_sequence_that_pods_have_with_other_content_is_passed_over_once(ahead: int) -> None:
    """As after a restore from backup: pods take nothing that is older, and no other content under the same number."""
    world = World()
    await world.reconcile(4)
    before = world.api.objects["PromptDelivery", "app"]["spec"]
    known = before["sequence"] + ahead
    laggard = Laggard(pod="p", reason="serves something else")
    world.pods.said = Acknowledgement(False, 0, 1, (laggard,), highest=known, conflicting=known)
    await world.reconcile(3)
    assert world.api.objects["PromptDelivery", "app"]["spec"] == before | {"sequence": known + 1}
    assert world.status().delivery is not None
    assert [lag.pod for lag in world.status().delivery.laggards] == ["p"]
