"""One reconcile against an API server that loses answers and refuses writes."""

import copy
import json
from typing import Any

import pytest
from kubernetes.aio.client.exceptions import ApiException

from promptrollout.api.delivery import Laggard, Reporting
from promptrollout.api.rollout import RolloutStatus
from promptrollout.cluster import ApiUnavailable
from promptrollout.operator.cluster.metrics import Metrics
from promptrollout.operator.cluster.queue import Key, WorkQueue
from promptrollout.operator.cluster.store import Store
from promptrollout.operator.delivery.confirmations import Acknowledgement
from promptrollout.operator.evidence.analyses import Analyses
from promptrollout.operator.rollouts.reconcile import RolloutReconciler
from tests.unit.operator.world import PROMPT, an_object, store_with

KEY = Key("PromptRollout", "ns", "app")
SPEC: dict[str, Any] = {
    "gatewayRef": {"name": "default"},
    "template": PROMPT,
    "strategy": {"canary": {"steps": [{"weight": 10, "minDurationSeconds": 3600}], "bakeSeconds": 0}},
    "analysis": {"mode": "None", "intervalSeconds": 30},
}


class FakeApi:
    """Objects with resource versions. `refuse`: HTTP status by kind and verb; `lose`: writes whose answer is lost."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.writes: list[tuple[str, str]] = []
        self.refuse: dict[tuple[str, str], int] = {}
        self.message = "refused"
        self.causes: list[dict[str, str]] = []
        self.lose: set[tuple[str, str]] = set()
        self._version = 100

    def events(self) -> list[str]:
        return [item["reason"] for (kind, _), item in self.objects.items() if kind == "Event"]

    def _written(self, kind: str, verb: str, item: dict[str, Any]) -> dict[str, Any]:
        self.writes.append((kind, verb))
        if (kind, verb) in self.refuse:
            error = ApiException(status=self.refuse[kind, verb], reason=self.message)
            error.body = json.dumps({"kind": "Status", "message": self.message, "details": {"causes": self.causes}})
            raise error
        self._version += 1
        name = item["metadata"]["name"]
        metadata = {"namespace": "ns", "uid": f"{kind}-{name}"} | item["metadata"]
        metadata["resourceVersion"] = str(self._version)
        self.objects[kind, name] = {**item, "metadata": metadata}
        if (kind, verb) in self.lose:
            self.lose.discard((kind, verb))
            raise ApiUnavailable("no answer")
        return copy.deepcopy(self.objects[kind, name])

    async def get(self, kind: str, namespace: str, name: str) -> Any:
        return copy.deepcopy(self.objects.get((kind, name)))

    async def create(self, kind: str, namespace: str, body: Any) -> Any:
        if (kind, body["metadata"]["name"]) in self.objects:
            raise ApiException(status=409, reason="exists")
        return self._written(kind, "create", body)

    async def apply(self, kind: str, namespace: str, name: str, body: Any) -> Any:
        status = {"status": (self.objects.get((kind, name)) or {}).get("status") or {}}
        return self._written(kind, "apply", status | copy.deepcopy(body))

    async def merge(self, kind: str, namespace: str, name: str, body: Any) -> Any:
        item = copy.deepcopy(self.objects[kind, name])
        item["metadata"] |= body["metadata"]
        return self._written(kind, "merge", item)

    async def apply_status(self, kind: str, subject: Any, status: Any) -> Any:
        known = self.objects[kind, subject["metadata"]["name"]]
        if known["metadata"]["resourceVersion"] != subject["metadata"]["resourceVersion"]:
            raise ApiException(status=409, reason="conflict")
        return self._written(kind, "status", copy.deepcopy(known) | {"status": copy.deepcopy(status)})

    async def evict(self, namespace: str, pod: str) -> bool:
        self.writes.append(("Pod", "evict"))
        if ("Pod", "evict") in self.refuse:
            raise ApiException(status=self.refuse["Pod", "evict"], reason="refused")
        return True

    async def delete(self, kind: str, subject: Any) -> None:
        del self.objects[kind, subject["metadata"]["name"]]


class FakePods:
    """The acknowledger's place: all pods answer `said`; None: they were not asked yet."""

    def __init__(self) -> None:
        self.said: Acknowledgement | None = Acknowledgement(True, 2, 2, canary_provider_unreachable=False)

    def ask(self, *_: Any, **__: Any) -> None: ...

    def answer(self, *_: Any) -> Acknowledgement | None:
        return self.said

    def died_in(self, *_: Any) -> dict[str, Any]:
        return {}

    def forget(self, *_: Any) -> None: ...


class World:
    """An operator that can be restarted, before an API server that cannot."""

    def __init__(self, **spec: Any) -> None:
        self.api, self.pods, self.now = FakeApi(), FakePods(), 1000.0
        self.sources: set[str] = set()
        self.api._written("PromptRollout", "create", an_object("PromptRollout", "app", SPEC | spec))
        self.start()

    def start(self) -> None:
        self.store: Store = store_with()
        self.queue = WorkQueue(clock=lambda: self.now)
        self.reconciler = RolloutReconciler(
            self.api,  # type: ignore[arg-type]
            self.store,
            self.queue,
            self.pods,  # type: ignore[arg-type]
            Analyses({}, 0, self.queue.add),
            self.sources,
            Metrics(),
            "operator-1",
            clock=lambda: self.now,
        )

    def see(self) -> None:
        """What watches would tell."""
        for (kind, _), item in self.api.objects.items():
            if kind.startswith("Prompt"):
                self.store.put(kind, copy.deepcopy(item))

    async def reconcile(self, times: int = 1) -> None:
        for _ in range(times):
            self.see()
            item = self.store.get(*KEY)
            assert item is not None
            await self.reconciler.reconcile(KEY, item)

    def edit(self, spec: dict[str, Any]) -> None:
        item = copy.deepcopy(self.api.objects["PromptRollout", "app"])
        item["metadata"]["generation"] += 1
        self.api._written("PromptRollout", "edit", item | {"spec": spec})

    def status(self) -> RolloutStatus:
        return RolloutStatus.model_validate(self.api.objects["PromptRollout", "app"]["status"])

    def edit_status(self, **fields: Any) -> None:
        item = copy.deepcopy(self.api.objects["PromptRollout", "app"])
        item["status"] |= fields
        self.api._written("PromptRollout", "edit", item)


async def in_canary() -> World:
    world = World()
    await world.reconcile(4)
    world.edit(SPEC | {"template": PROMPT | {"model": "large"}})
    await world.reconcile(6)
    assert (world.status().stage, world.status().weight) == ("Stepping", 10)
    return world


async def test_pods_are_told_of_testers_and_reporting_and_evidence_of_another_kind_starts_over() -> None:
    world = await in_canary()

    def told() -> tuple[object, object]:
        spec = world.api.objects["PromptDelivery", "app"]["spec"]
        return spec.get("testers"), spec.get("reporting")

    assert told() == ([], None)
    testers = [{"header": "x-team", "values": ["qa"]}]
    canary = {"canary": {"steps": [{"weight": 10}], "testers": testers}}
    changed = SPEC | {"template": PROMPT | {"model": "large"}, "strategy": canary}
    world.edit(changed)
    await world.reconcile(4)
    assert told() == (testers, None)
    assert (world.status().stage, world.status().weight) == ("Stepping", 10), "whose tests nobody counts"
    world.edit(changed | {"evidenceSource": "Reported", "reporting": {"cacheSeconds": 5}})
    await world.reconcile()
    assert (world.status().stage, world.status().weight) == ("Loading", 0)
    await world.reconcile(4)
    assert told() == (testers, {"cacheSeconds": 5, "settleSeconds": 300})
    snapshot = world.status().snapshot
    assert snapshot is not None
    assert snapshot.reporting == Reporting(cache_seconds=5)


async def test_a_decision_whose_write_was_not_answered_has_its_event() -> None:
    world = await in_canary()
    world.api.lose.add(("PromptRollout", "status"))
    world.edit(SPEC)
    try:
        await world.reconcile()
    except ApiUnavailable:
        assert world.status().withdrawal == "RolloutCancelled"
        assert "RolloutCancelled" not in world.api.events()
    else:
        raise AssertionError("the answer should have been lost")
    await world.reconcile(3)
    assert world.api.events().count("RolloutCancelled") == 1


async def test_refused_events_keep_nothing_from_happening_and_are_posted_later() -> None:
    world = World()
    world.api.refuse["Event", "create"] = 403
    await world.reconcile(5)
    assert world.status().stage == "Idle"
    assert ("PromptVersion", "merge") in world.api.writes
    tries = world.api.writes.count(("Event", "create"))
    await world.reconcile(5)
    assert world.api.writes.count(("Event", "create")) == tries
    del world.api.refuse["Event", "create"]
    world.now += 60
    world.queue.ripen()
    assert world.queue.depth >= 1
    await world.reconcile()
    assert world.api.events() == ["InitialVersion"]


async def test_an_event_that_no_server_takes_is_given_up() -> None:
    world = World()
    world.api.refuse["Event", "create"] = 422
    await world.reconcile(5)
    assert world.api.writes.count(("Event", "create")) == 1


async def test_a_laggard_is_evicted_though_marks_and_events_are_refused() -> None:
    world = await in_canary()
    laggard = Laggard(pod="p", reason="silent")
    world.pods.said = Acknowledgement(False, 1, 2, (laggard,), canary_provider_unreachable=False)
    world.api.refuse = {("Event", "create"): 403, ("Pod", "evict"): 403}
    world.edit(SPEC)
    await world.reconcile(2)
    since = world.status().clock.stage_since
    assert since is not None
    clock = world.status().clock.model_copy(update={"stage_since": since - 61})
    world.edit_status(clock=clock.dump())
    world.api.writes.clear()
    world.now += 60
    await world.reconcile()
    writes = world.api.writes
    assert writes.index(("Pod", "evict")) < writes.index(("Event", "create"))


async def test_a_restart_does_not_restart_the_providers_timer() -> None:
    world = await in_canary()
    world.pods.said = Acknowledgement(True, 2, 2, canary_provider_unreachable=True)
    await world.reconcile()
    since = world.status().clock.unreachable_since
    assert since is not None
    world.start()
    world.pods.said = None  # the new process knows of the delivery's status only
    await world.reconcile(2)
    assert world.status().clock.unreachable_since == since
    world.pods.said = Acknowledgement(True, 2, 2, canary_provider_unreachable=False)
    await world.reconcile()
    assert world.status().clock.unreachable_since is None


async def test_a_gateway_is_looked_at_when_a_delivery_needs_another_key() -> None:
    world = await in_canary()
    gateway = Key("PromptGateway", "ns", "default")
    world.store.put("ModelProvider", an_object("ModelProvider", "other", {"baseURL": "http://other/v1"}))
    world.edit(SPEC | {"template": PROMPT | {"providerRef": {"name": "other"}}})
    add, providers = world.queue.add, []

    def added(key: Key) -> None:
        canary = world.api.objects["PromptDelivery", "app"]["spec"].get("canary")
        providers.extend([canary["provider"]["name"]] if key == gateway and canary else [])
        add(key)

    world.queue.add = added  # type: ignore[method-assign]
    await world.reconcile(8)
    assert "other" in providers, "only once the delivery is written does the gateway know that the key is needed"


UNREADABLE = SPEC | {"strategy": {"blueGreen": {}}}


@pytest.mark.parametrize("restart", [False, True])
async def test_a_spec_of_another_release_is_said_and_leaves_serving_alone(restart: bool) -> None:
    kept = {"stickiness": {"by": "Conversation"}, "evidenceSource": "Reported"}
    world = World(**kept)
    await world.reconcile(4)
    before = copy.deepcopy(world.api.objects["PromptDelivery", "app"]["spec"])
    world.edit(UNREADABLE)
    if restart:
        world.start()
    await world.reconcile(3)
    condition = next(c for c in world.status().conditions if c.type == "InvalidSpec")
    assert (condition.status, world.status().phase) == ("True", "Degraded")
    assert "spec.strategy.canary: required: add it: this release cannot read it" in world.status().message
    assert world.api.objects["PromptDelivery", "app"]["spec"] == before
    world.edit(SPEC | kept)
    await world.reconcile(3)
    assert (world.status().phase, world.api.objects["PromptDelivery", "app"]["spec"]) == ("Healthy", before)


async def test_a_first_spec_that_cannot_be_read_serves_nothing() -> None:
    world = World()
    world.edit(UNREADABLE)
    await world.reconcile(3)
    assert world.status().phase == "Degraded"
    assert ("PromptDelivery", "app") not in world.api.objects


async def test_the_message_says_which_objectives_are_left_out() -> None:
    contract = {"name": "contract", "signal": "ContractFailureRate", "max": "0.1"}
    world = World(analysis={"objectives": [contract]})
    world.sources.add("default")
    await world.reconcile(4)
    status = world.status()
    assert status.stable is not None
    assert status.message.endswith("objectives on ContractFailureRate are left out: contract")
    assert any(c.type == "Ready" and c.message == status.message for c in status.conditions)
