"""Whom the operator asks, and what it makes of the answers."""

from typing import Any

import pytest
from aiohttp import web

from promptrollout.api.delivery import RolloutReport
from promptrollout.operator import acknowledge
from promptrollout.operator.acknowledge import Acknowledger, Expected, judge, serving_pods
from promptrollout.operator.queue import Key
from promptrollout.operator.store import Store
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
    monkeypatch.setattr(acknowledge, "PORT_ADMIN", runner.addresses[0][1])
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
        assert set(changed) == {Key("PromptRollout", "ns", "app")}
        count = len(asked)
        asker.pods_changed("ns", "default")
        await until(lambda: True)
        assert len(asked) == count
    finally:
        await asker.close()
        await runner.cleanup()


async def until(true: Any, seconds: float = 2.0) -> None:
    import asyncio

    for _ in range(int(seconds / 0.005)):
        await asyncio.sleep(0.005)
        if true():
            return
    raise AssertionError("not in time")
