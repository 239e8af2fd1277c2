"""Whom the operator asks, and what it makes of the answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from promptrollout.api.delivery import NO_DIGEST, RolloutReport
from promptrollout.operator.cluster.queue import Key
from promptrollout.operator.cluster.store import Store
from promptrollout.operator.delivery import acknowledge, confirmations, pod_reports
from promptrollout.operator.delivery.acknowledge import Acknowledger
from promptrollout.operator.delivery.confirmations import Acknowledgement, Expected, judge
from promptrollout.operator.gateways.conditions import Reported
from promptrollout.operator.gateways.pods import serving_pods
from tests.unit.operator.world import an_object

DIGEST = "sha256:" + "a" * 64


def pod(name: str, *, ready: bool = True, ip: str = "127.0.0.1", **metadata: Any) -> dict[str, Any]:
    owner = {"kind": "ReplicaSet", "name": "default-gateway-77", "controller": True}
    labels = {"promptrollout.dev/gateway": "default", "pod-template-hash": "77"}
    item = an_object("Pod", name, {}, **({"labels": labels, "ownerReferences": [owner]} | metadata))
    item["status"] = {"podIP": ip, "conditions": [{"type": "Ready", "status": "True" if ready else "False"}]}
    return item


def report(sequence: int, uid: str = "uid", **fields: Any) -> RolloutReport:
    base = {"name": "app", "rolloutUID": uid, "sequence": sequence, "weight": 0, "stable": DIGEST}
    return RolloutReport.model_validate(base | fields)


def expected(sequence: int, uid: str = "uid", weight: int = 0) -> Expected:
    return Expected(sequence, uid, weight, DIGEST)


def test_only_ready_pods_of_the_own_deployment_are_asked() -> None:
    store = Store()
    stranger = [{"kind": "ReplicaSet", "name": "imposter-77", "controller": True}]
    for item in (
        pod("a"),
        pod("b", ready=False),
        pod("c", deletionTimestamp="2026-01-01T00:00:00Z"),
        pod("d", ownerReferences=stranger),
        pod("e", ownerReferences=[]),
        pod("f", labels={"promptrollout.dev/gateway": "other", "pod-template-hash": "77"}),
    ):
        store.put("Pod", item)
    assert [p["metadata"]["name"] for p in serving_pods(store, "ns", "default")] == ["a"]


def test_complete_when_every_ready_pod_confirms() -> None:
    pods = [pod("a"), pod("b")]
    assert judge(expected(3), pods, [report(3), report(3)]).complete
    late = judge(expected(3), pods, [report(3), report(2, problem="no key file", problemSequence=3)])
    assert (late.complete, late.acknowledged, late.total) == (False, 1, 2)
    assert [(lag.pod, lag.reason) for lag in late.laggards] == [("b", "no key file")]
    assert not judge(expected(3), [], []).complete
    assert "earlier object" in judge(expected(3, "new"), pods[:1], [report(3)]).laggards[0].reason
    assert judge(expected(3), pods[:1], ["no answer within 1 s"]).laggards[0].reason == "no answer within 1 s"


def test_pods_that_serve_nothing_of_it_are_counted() -> None:
    """Not those that have not heard of it yet."""
    nothing = report(0, stable=NO_DIGEST, problem="no key file", problemSequence=3)
    answer = judge(expected(3), [pod("a"), pod("b"), pod("c")], [nothing, "it has not loaded it yet", report(2)])
    assert (answer.unserved, answer.total) == (1, 3)


def test_a_higher_sequence_confirms_only_the_same_content() -> None:
    """After a restore from backup, or when the delivery was deleted, pods know more than the object."""
    pods = [pod("a")]
    assert judge(expected(3), pods, [report(7)]).complete
    for other in ({"weight": 10}, {"stable": "sha256:" + "b" * 64}, {"canary": DIGEST}):
        answer = judge(expected(3), pods, [report(7, **other)])
        assert (answer.complete, answer.highest) == (False, 7)
        assert answer.laggards[0].reason == "it serves sequence 7 with other content"


def test_what_a_pod_cannot_serve_it_does_not_confirm() -> None:
    """Its own sequence is as high, but it says that it refused ours."""
    problem = {"problem": "sequence 3 is in service with other content", "problemSequence": 3}
    answer = judge(expected(3), [pod("a")], [report(3, **problem)])
    assert (answer.complete, answer.laggards[0].reason) == (False, problem["problem"])
    assert judge(expected(3), [pod("a")], [report(3, problem="of old", problemSequence=2)]).complete


def test_no_news_of_the_provider_is_not_good_news() -> None:
    assert judge(expected(1), [], []).canary_provider_unreachable is None
    assert judge(expected(1), [pod("a")], ["no answer within 1 s"]).canary_provider_unreachable is None
    assert judge(expected(1), [pod("a")], [report(1)]).canary_provider_unreachable is False


def test_a_provider_counts_as_unreachable_when_half_of_the_pods_say_so() -> None:
    pods = [pod("a"), pod("b"), pod("c")]
    one = judge(expected(1), pods, [report(1, canaryProviderUnreachable=True), report(1), report(1)])
    two = judge(expected(1), pods, [report(1, canaryProviderUnreachable=True)] * 2 + [report(1)])
    assert (one.canary_provider_unreachable, two.canary_provider_unreachable) == (False, True)


@pytest.mark.parametrize(
    ("said", "percent"),
    [
        ([(100, {}), (100, {})], 0),
        ([(100, {7: 50, 8: 2}), (100, {8: 3})], 25),
        ([(100, {7: 20}), (100, {7: 30, 9: 40})], 25),
        ([(50, {7: 50}), (49, {})], 0),
        ([(99, {7: 99})], 0),
        ([(100, {7: 20})], 20),
        ([(1000, {7: 201})], 21),
    ],
)
def test_a_heavy_key_is_one_over_all_pods_and_a_few_requests_say_nothing(
    said: list[tuple[int, dict[int, int]]], percent: int
) -> None:
    reports = [
        report(1, assignedRequests=total, heavyUnits=[{"unit": u, "requests": n} for u, n in units.items()])
        for total, units in said
    ]
    pods = [pod(str(n)) for n in range(len(reports))]
    assert judge(expected(1), pods, list(reports)).heavy_key_share_percent == percent
    assert judge(expected(1), pods[:1], ["no answer"]).heavy_key_share_percent is None


async def test_pods_are_asked_until_they_confirm_and_then_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    sequence = 1

    async def rollouts(request: web.Request) -> web.Response:
        asked.append(request.query.getall("name"))
        body = {"pod": "a", "formatVersions": [1], "loaded": True}
        return web.json_response(body | {"rollouts": [report(sequence).model_dump(by_alias=True)]})

    app = web.Application()
    app.router.add_get("/rollouts", rollouts)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    monkeypatch.setattr(pod_reports, "PORT_ADMIN", runner.addresses[0][1])
    monkeypatch.setattr(acknowledge, "POLL_SECONDS", (0.01, 0.02))
    store, changed = Store(), []
    store.put("Pod", pod("a"))
    asker = Acknowledger(store, changed.append)
    try:
        asker.ask("ns", "default", "app", expected(2), regularly=False, known=None)
        assert asker.answer("ns", "default", "app", "uid", 2) is None
        await until(lambda: len(asked) >= 3)
        answer = asker.answer("ns", "default", "app", "uid", 2)
        assert answer is not None
        assert not answer.complete
        sequence = 2
        await until(lambda: (a := asker.answer("ns", "default", "app", "uid", 2)) is not None and a.complete)
        assert asked[0] == ["app"]
        assert set(changed) == {Key("PromptRollout", "ns", "app"), Key("PromptGateway", "ns", "default")}
        count = len(asked)
        await until(lambda: True)
        assert len(asked) == count
        changed.clear()
        asker.pods_changed("ns", "default")
        await until(lambda: len(asked) == count + 1)
        await until(lambda: True)
        assert (len(asked), changed) == (count + 1, [])
    finally:
        await asker.close()
        await runner.cleanup()


class Pod:
    """A gateway pod's admin port. `says`: its report of the rollout; None: it has none."""

    def __init__(self) -> None:
        self.asked, self.loaded = 0, True
        self.says: RolloutReport | None = report(2)
        self.problems: list[dict[str, str]] = []
        self.died_in: list[dict[str, str]] = []

    async def rollouts(self, _: web.Request) -> web.Response:
        self.asked += 1
        rollouts = [self.says.model_dump(by_alias=True)] if self.says else []
        body = {"pod": "a", "formatVersions": [1], "loaded": self.loaded}
        return web.json_response(body | {"rollouts": rollouts, "problems": self.problems, "diedIn": self.died_in})


@pytest.fixture
async def a_pod(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pod]:
    found, app = Pod(), web.Application()
    app.router.add_get("/rollouts", found.rollouts)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    monkeypatch.setattr(pod_reports, "PORT_ADMIN", runner.addresses[0][1])
    monkeypatch.setattr(acknowledge, "POLL_SECONDS", (0.005, 0.01))
    monkeypatch.setattr(confirmations, "DOUBT_SECONDS", 0.03)
    yield found
    await runner.cleanup()


class Asked:
    """An acknowledger that was told by the delivery's status that one pod of one confirmed sequence 2."""

    def __init__(self) -> None:
        self.store, self.changed, self.gateways = Store(), list[Key](), list[Key]()
        self.store.put("Pod", pod("a"))
        self.asker = Acknowledger(self.store, self._note)

    async def __aenter__(self) -> Asked:
        self.asker.ask("ns", "default", "app", expected(2), regularly=False, known=(1, 1))
        assert self.answer().complete
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.asker.close()

    def _note(self, key: Key) -> None:
        (self.changed if key.kind == "PromptRollout" else self.gateways).append(key)

    def answer(self) -> Acknowledgement:
        found = self.asker.answer("ns", "default", "app", "uid", 2)
        assert found is not None
        return found


async def test_a_trusted_status_is_confirmed_once_and_changes_nothing(a_pod: Pod) -> None:
    async with Asked() as asked:
        before = asked.answer()
        await until(lambda: a_pod.asked)
        await asyncio.sleep(0.03)
        assert before is not None
        assert (a_pod.asked, asked.answer(), asked.changed) == (1, before, [])


@pytest.mark.parametrize(
    ("says", "highest", "taken"),
    [
        (report(5, stable="sha256:" + "b" * 64), 5, 5),
        (report(2, stable="sha256:" + "b" * 64), 2, 2),
        (report(1), 1, 0),
        (None, 0, 0),
    ],
)
async def test_pods_are_believed_more_than_a_status_from_a_backup(
    a_pod: Pod, says: RolloutReport | None, highest: int, taken: int
) -> None:
    a_pod.says = says
    async with Asked() as asked:
        await until(lambda: asked.changed)
        answer = asked.answer()
        assert (answer.complete, answer.highest, answer.conflicting, answer.acknowledged) == (False, highest, taken, 0)
        assert answer.laggards
        a_pod.says = report(2)
        await until(lambda: asked.answer().complete)


async def test_a_pod_that_is_just_starting_or_silent_says_nothing_against_it(
    a_pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confirmations, "VERIFY_SECONDS", 1.0)
    a_pod.loaded, a_pod.says = False, None
    async with Asked() as asked:
        await until(lambda: a_pod.asked >= 3)
        await asyncio.sleep(1.1)
        count = a_pod.asked
        await asyncio.sleep(0.03)
        assert (a_pod.asked, asked.answer().complete, asked.changed) == (count, True, [])


async def test_a_moment_of_something_else_is_no_reason(a_pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confirmations, "DOUBT_SECONDS", 60.0)
    a_pod.says = report(1)
    async with Asked() as asked:
        await until(lambda: a_pod.asked >= 3)
        a_pod.says = report(2)
        await asyncio.sleep(0.05)
        count = a_pod.asked
        await asyncio.sleep(0.03)
        assert (a_pod.asked, asked.answer().complete, asked.changed) == (count, True, [])


async def test_what_is_served_is_asked_for_again_and_again(a_pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acknowledge, "RECHECK_SECONDS", 0.04)
    a_pod.says = report(2, unassignedSharePercent=7)
    async with Asked() as asked:
        await until(lambda: a_pod.asked >= 3)
        assert asked.changed == []
        a_pod.says = report(9, stable="sha256:" + "b" * 64)
        await until(lambda: asked.changed)
        assert (asked.answer().complete, asked.answer().highest) == (False, 9)


async def test_what_is_wrong_with_a_pod_is_told_to_its_gateway(a_pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acknowledge, "RECHECK_SECONDS", 0.04)
    async with Asked() as asked:
        assert asked.asker.reported("ns", "default") is None
        await until(lambda: asked.asker.reported("ns", "default") == Reported(1))
        a_pod.problems = [{"reason": "NoKeys", "message": "none"}]
        expected_now = Reported(1, (("NoKeys", "none", 1),))
        await until(lambda: asked.asker.reported("ns", "default") == expected_now)
        count = a_pod.asked
        await until(lambda: a_pod.asked > count + 1)
        assert asked.gateways == [Key("PromptGateway", "ns", "default")] * 2, "nothing new is not told again"
        assert asked.changed == []


async def test_what_a_pod_died_for_is_told_to_the_rollouts(a_pod: Pod) -> None:
    digest = "sha256:" + "c" * 64
    a_pod.died_in = [{"rolloutUID": "uid", "digest": digest, "variant": "canary", "at": "2026-11-30T10:00:00Z"}]
    async with Asked() as asked:
        await until(lambda: asked.asker.died_in("ns", "default"))
        assert asked.changed == [Key("PromptRollout", "ns", "app")]
        (died,) = asked.asker.died_in("ns", "default")["a"]
        assert (died.rollout_uid, died.digest, died.variant) == ("uid", digest, "canary")
        assert asked.asker.died_in("ns", "elsewhere") == {}


async def test_nothing_of_a_gateway_that_is_gone_is_said_of_one_made_anew(
    a_pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_pod.problems = [{"reason": "NoKeys", "message": "none"}]
    async with Asked() as asked:
        await until(lambda: asked.asker.reported("ns", "default") is not None)
        asked.asker.forget_gateway("ns", "default")
        assert asked.asker.reported("ns", "default") is None
        assert asked.asker.answer("ns", "default", "app", "uid", 2) is None
        # as long as the rollout is there its pods are asked, and then nothing is left of it
        asked.asker.ask("ns", "default", "app", expected(2), regularly=False, known=None)
        await until(lambda: asked.asker.reported("ns", "default") is not None)
        monkeypatch.setattr(acknowledge, "RECHECK_SECONDS", 0.01)
        asked.asker.pods_changed("ns", "default")
        asked.asker.forget("ns", "app")
        await until(lambda: asked.asker.reported("ns", "default") is None)


async def until(true: Any, seconds: float = 20.0) -> None:
    for _ in range(int(seconds / 0.005)):
        await asyncio.sleep(0.005)
        if true():
            return
    raise AssertionError("not in time")
