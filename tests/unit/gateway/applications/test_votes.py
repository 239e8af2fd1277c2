"""Feedback and scores: for the right version and arm, by the answer's age, once, in whichever pod they arrive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from promptrollout.api import names
from promptrollout.api.slo import Objective
from promptrollout.engine.objectives.signals import signal_of
from promptrollout.gateway.applications import feedback
from promptrollout.gateway.assignment.bucketing import shard
from promptrollout.gateway.assignment.response_id import ResponseId, ResponseIds
from promptrollout.gateway.process import Gateway, Settings
from promptrollout.gateway.server.app import Limits, ServingApp
from promptrollout.sandbox.model.behaviour import parse_behaviours
from promptrollout.sandbox.model.server import SimulatedModel
from tests.unit.gateway.kit import (
    CANARY,
    KEY,
    LOOPBACK,
    STABLE,
    Answered,
    Caller,
    Samples,
    arm,
    delivery,
    request,
    samples,
    value,
)
from tests.unit.gateway.pipeline.test_end_to_end import serving

IDS = ResponseIds("uid-1", bytes.fromhex(KEY))
NOW = 1_700_000_000
SHARDED = [names.shard_metric(name) for name in (names.METRIC_FEEDBACK, "promptrollout_score_count")]
SHARDED.append(names.shard_metric("promptrollout_score_sum"))


def token(age: float = 30, version: str = STABLE, variant: Any = "stable", of: int = 3, upstream: str = "x") -> str:
    return IDS.wrap(
        ResponseId(f"chatcmpl-{upstream}", version[:10], variant, of, int(NOW - age), b"..", int(NOW - age))
    )


@pytest.fixture
async def voted(gateway: Gateway) -> Caller:
    """A rollout with a canary, at a time that stands still."""
    await load(gateway, 1)
    return Caller(ServingApp(gateway.registry, gateway.counters, Limits(), wall_clock=lambda: NOW))


async def load(gateway: Gateway, sequence: int, **changes: Any) -> None:
    wanted = {"canary": arm(CANARY), "responseKey": KEY, "scores": ["helpful"], "shardMetrics": SHARDED, **changes}
    await gateway.registry.apply("support", delivery(sequence, **wanted))


async def thumb(caller: Caller, response_id: Any, rating: Any = "negative") -> Answered:
    return await caller.post({"response_id": response_id, "rating": rating}, "/v1/feedback")


async def score(caller: Caller, response_id: Any, name: Any = "helpful", of: Any = 0.5) -> Answered:
    return await caller.post({"response_id": response_id, "name": name, "value": of}, "/v1/scores")


async def test_everything_stands_at_zero_before_the_first_vote(gateway: Gateway, voted: Caller) -> None:
    found = await samples(gateway)
    for variant in ("stable", "canary"):
        for age in names.AGES:
            for rating in ("positive", "negative"):
                labels = {"variant": variant, "age": age, "rating": rating}
                assert value(found, names.METRIC_FEEDBACK, **labels) == 0
                assert value(found, names.shard_metric(names.METRIC_FEEDBACK), **labels, shard="31") == 0
            for suffix in ("_count", "_sum", "_sumsq"):
                assert value(found, names.METRIC_SCORE + suffix, variant=variant, age=age, score="helpful") == 0
            for suffix in ("_count", "_sum"):
                metric = names.shard_metric(names.METRIC_SCORE + suffix)
                assert value(found, metric, variant=variant, age=age, score="helpful", shard="0") == 0


@pytest.mark.parametrize(
    ("seconds", "age"),
    [(-60, "1m"), (0, "1m"), (60, "1m"), (61, "10m"), (600, "10m"), (3_600, "1h"), (3_601, "6h"), (86_400, "24h")],
)
async def test_a_thumb_counts_under_its_answer_s_age(gateway: Gateway, voted: Caller, seconds: int, age: str) -> None:
    answered = await thumb(voted, token(seconds, CANARY, "canary", of=9))
    assert (answered.status, answered.json) == (200, {"object": "feedback", "counted": True})
    found = await samples(gateway)
    labels = {"variant": "canary", "version": CANARY[:10], "rating": "negative", "age": age}
    assert value(found, names.METRIC_FEEDBACK, **labels) == 1 == value(found, names.METRIC_FEEDBACK)
    sharded = names.shard_metric(names.METRIC_FEEDBACK)
    assert value(found, sharded, **labels, shard="9") == 1 == value(found, sharded)


@pytest.mark.parametrize(
    ("said", "rating"),
    [
        ({"edited": True}, "negative"),
        ({"edited": False}, "positive"),
        ({"edited": True, "rating": "positive"}, "positive"),
    ],
)
async def test_an_answer_that_had_to_be_edited_is_negative(
    gateway: Gateway, voted: Caller, said: dict[str, Any], rating: str
) -> None:
    assert (await voted.post({"response_id": token(), **said}, "/v1/feedback")).json["counted"] is True
    found = await samples(gateway)
    assert value(found, names.METRIC_FEEDBACK, rating=rating) == 1 == value(found, names.METRIC_FEEDBACK)


async def test_scores_are_counted_summed_and_squared(gateway: Gateway, voted: Caller) -> None:
    for n, of in enumerate((0, 0.5, 4)):
        assert (await score(voted, token(upstream=str(n)), of=of)).json == {"object": "score", "counted": True}
    found = await samples(gateway)
    labels = {"variant": "stable", "score": "helpful", "age": "1m"}
    assert [value(found, names.METRIC_SCORE + end, **labels) for end in ("_count", "_sum", "_sumsq")] == [3, 4.5, 16.25]
    for end, total in (("_count", 3), ("_sum", 4.5)):
        metric = names.shard_metric(names.METRIC_SCORE + end)
        assert value(found, metric, **labels, shard="3") == total == value(found, metric)


async def test_one_vote_per_answer_and_kind(gateway: Gateway, voted: Caller) -> None:
    again = {"counted": False, "reason": "already_counted"}
    conversation = {"conversation_id": token(), "name": "helpful", "value": 1}
    votes = (
        lambda: thumb(voted, token()),
        lambda: score(voted, token()),
        lambda: score(voted, token(), "polite"),
        lambda: voted.post(conversation, "/v1/scores"),
    )
    for vote in votes:
        assert (await vote()).json["counted"] is True
    for vote in votes:
        assert (await vote()).json.items() >= again.items()
    assert (await thumb(voted, token(), "positive")).json["reason"] == "already_counted", "minds are not changed"
    found = await samples(gateway)
    assert value(found, names.METRIC_FEEDBACK) == 1
    assert value(found, names.METRIC_SCORE + "_count") == 3
    assert value(found, "promptrollout_gateway_votes_not_counted_total", reason="already_counted") == 5


async def test_memory_of_votes_is_bounded(voted: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "MAX_REMEMBERED", 3)
    for n in range(4):
        assert (await thumb(voted, token(upstream=str(n)))).json["counted"] is True
    assert (await thumb(voted, token(upstream="1"))).json["counted"] is False
    assert (await thumb(voted, token(upstream="0"))).json["counted"] is True, "the oldest is forgotten"


async def test_what_is_taken_but_not_counted(gateway: Gateway, voted: Caller) -> None:
    for made, reason in (
        (token(86_401), "too_old"),
        (token(version="c" * 64), "version_retired"),
        (token(version=CANARY), "version_retired"),
        (token(variant=None), "not_compared"),
    ):
        for answered in (await thumb(voted, made), await score(voted, made)):
            assert answered.status == 200
            assert (answered.json["counted"], answered.json["reason"]) == (False, reason)
    await load(gateway, 2, canary=None)
    late = await thumb(voted, token(version=CANARY, variant="canary"))
    assert late.json == {"object": "feedback", "counted": False, "reason": "version_retired"}
    found = await samples(gateway)
    assert value(found, names.METRIC_FEEDBACK) == 0
    assert value(found, "promptrollout_gateway_votes_not_counted_total", reason="version_retired") == 5


async def test_what_was_signed_before_the_key_changed_and_by_pods_that_are_ahead_is_counted(
    gateway: Gateway, voted: Caller
) -> None:
    rotated_at = "2026-01-01T00:00:00Z"
    beside = {"next": "66" * 32, "previous": KEY, "rotatedAt": rotated_at}
    await load(gateway, 2, responseKey="55" * 32, responseKeys=beside)
    given = ResponseId("chatcmpl-ahead", STABLE[:10], "stable", 3, NOW, b"..", NOW)
    ids = [token(), *(ResponseIds("uid-1", bytes.fromhex(key)).wrap(given) for key in ("55" * 32, "66" * 32))]
    assert [(await thumb(voted, each)).json["counted"] for each in ids] == [True] * 3
    await load(gateway, 3, responseKey="66" * 32, responseKeys={**beside, "next": "77" * 32, "previous": "55" * 32})
    assert (await thumb(voted, token())).error["code"] == "invalid_response_id"
    serving = gateway.registry.find("support")
    assert serving is not None
    assert serving.response_ids is not None
    assert serving.response_ids.wrap(given) == ids[2], "the key that signs is the delivery's own"


async def test_outside_of_the_comparison_is_counted_as_such(gateway: Gateway, voted: Caller) -> None:
    assert (await thumb(voted, token(variant="stable-outside"))).json["counted"] is True
    found = await samples(gateway)
    assert value(found, names.METRIC_FEEDBACK, variant="stable-outside") == 1 == value(found, names.METRIC_FEEDBACK)


@pytest.mark.parametrize(
    ("path", "body", "code", "param"),
    [
        ("feedback", b"{", "invalid_json", None),
        ("feedback", [], "invalid_json", None),
        ("feedback", {"rating": "positive"}, "invalid_vote", "response_id"),
        ("feedback", {"response_id": token(), "rating": "fine"}, "invalid_vote", "rating"),
        ("feedback", {"response_id": token()}, "invalid_vote", "rating"),
        ("feedback", {"response_id": token(), "edited": "yes"}, "invalid_vote", "edited"),
        ("feedback", {"response_id": 7, "rating": "positive"}, "invalid_vote", "response_id"),
        ("feedback", {"response_id": "chatcmpl-1", "rating": "positive"}, "invalid_response_id", "response_id"),
        ("feedback", {"response_id": token() + "x", "rating": "positive"}, "invalid_response_id", "response_id"),
        ("feedback", {"response_id": token()[:-1], "rating": "positive"}, "invalid_response_id", "response_id"),
        ("scores", {"name": "a", "value": 1}, "invalid_vote", "response_id"),
        (
            "scores",
            {"name": "a", "value": 1, "response_id": "x", "conversation_id": "x"},
            "invalid_vote",
            "response_id",
        ),
        ("scores", {"name": "a", "value": 1, "conversation_id": "conv_1"}, "invalid_response_id", "conversation_id"),
        ("scores", {"name": "a", "value": -0.5, "response_id": token()}, "invalid_vote", "value"),
        ("scores", {"name": "a", "value": 1e10, "response_id": token()}, "invalid_vote", "value"),
        ("scores", {"name": "a", "value": True, "response_id": token()}, "invalid_vote", "value"),
        ("scores", {"name": "a", "value": "1", "response_id": token()}, "invalid_vote", "value"),
        ("scores", {"name": 'a"} 1\n', "value": 1, "response_id": token()}, "invalid_vote", "name"),
        ("scores", {"name": "a" * 64, "value": 1, "response_id": token()}, "invalid_vote", "name"),
    ],
)
async def test_what_is_wrong_is_said_with_the_field(
    gateway: Gateway, voted: Caller, path: str, body: Any, code: str, param: str | None
) -> None:
    answered = await voted.post(body, f"/v1/{path}")
    assert (answered.status, answered.error["code"], answered.error["param"]) == (400, code, param)
    assert (param or "JSON") in answered.error["message"]
    found = await samples(gateway)
    assert value(found, names.METRIC_FEEDBACK) == 0 == value(found, names.METRIC_SCORE + "_count")


async def test_an_answer_of_a_rollout_that_is_not_served_here(voted: Caller) -> None:
    other = ResponseIds("uid-2", bytes.fromhex(KEY)).wrap(
        ResponseId("chatcmpl-1", STABLE[:10], "stable", 0, NOW, b"..", NOW)
    )
    answered = await thumb(voted, other)
    assert (answered.status, answered.error["code"]) == (404, "response_not_found")
    forged = ResponseIds("uid-1", bytes(32)).wrap(ResponseId("chatcmpl-1", STABLE[:10], "stable", 0, NOW, b"..", NOW))
    assert (await thumb(voted, forged)).error["code"] == "invalid_response_id"
    assert (await voted.get("/v1/feedback")).status == 405


async def test_names_of_scores_are_bounded(gateway: Gateway, voted: Caller) -> None:
    for n in range(feedback.MAX_OTHER_SCORES):
        assert (await score(voted, token(), f"other-{n}")).json["counted"] is True
    refused = await score(voted, token(), "one-more")
    assert (refused.status, refused.error["code"], refused.error["param"]) == (400, "too_many_scores", "name")
    assert "other-0" in refused.error["message"]
    assert (await score(voted, token(), "helpful")).json["counted"] is True
    assert (await score(voted, token(upstream="y"), "other-0")).json["counted"] is True
    found = await samples(gateway)
    assert len({dict(of)["score"] for of in found[names.METRIC_SCORE + "_count"]}) == 17
    sharded = {dict(of)["score"] for of in found[names.shard_metric(names.METRIC_SCORE + "_count")]}
    assert sharded == {"helpful"}, "nobody reads the others by shards"


async def test_an_objective_on_a_score_that_is_posted_already(gateway: Gateway, voted: Caller) -> None:
    await score(voted, token(), "polite")
    await load(gateway, 2, scores=["helpful", "polite"])
    await score(voted, token(upstream="y"), "polite")
    found = await samples(gateway)
    assert value(found, names.METRIC_SCORE + "_count", score="polite") == 2
    assert value(found, names.shard_metric(names.METRIC_SCORE + "_count"), score="polite") == 1


@pytest.mark.parametrize(
    "objective",
    [
        {"signal": "NegativeFeedbackRate", "max": "0.1"},
        {"signal": "FeedbackRate", "max": "0.1"},
        {"signal": "Score", "score": "helpful", "min": "1"},
    ],
)
async def test_what_the_operator_reads_is_what_stands_here(gateway: Gateway, voted: Caller, objective: Any) -> None:
    signal = signal_of(Objective.model_validate({"name": "x", **objective}))
    await load(gateway, 2, shardMetrics=[counter.metric for _, counter in signal.shard_counters])
    await score(voted, token(), of=3)
    await thumb(voted, token())
    found = await samples(gateway)
    roles = {
        role: value(found, counter.metric, variant="stable", **dict(counter.labels))
        for role, counter in signal.counters
        if counter.metric != names.METRIC_REQUESTS
    }
    expected = {"NegativeFeedbackRate": {"n": 1, "total": 1}, "FeedbackRate": {"total": 1}}
    assert roles == expected.get(objective["signal"], {"n": 1, "total": 3, "total_squared": 9})
    for role, counter in signal.shard_counters:
        for at in range(names.SHARDS):
            n = value(found, counter.metric, variant="stable", shard=str(at), **dict(counter.labels))
            assert n == (roles.get(role, 0) if at == 3 else 0)
        read = {label for of in found[counter.metric] for label, _ in of}
        assert {*signal.strata, names.LABEL_SHARD} <= read


# ---------------------------------------------------------------- two pods, over HTTP


class Pods:
    def __init__(
        self, gateways: list[Gateway], urls: list[str], admins: list[str], http: aiohttp.ClientSession
    ) -> None:
        self.gateways, self.urls, self.admins, self.http = gateways, urls, admins, http

    async def post(self, pod: int, path: str, body: Any) -> tuple[int, Any, aiohttp.typedefs.LooseHeaders]:
        async with self.http.post(f"{self.urls[pod]}{path}", json=body) as answer:
            return answer.status, await answer.json(), answer.headers

    async def metrics(self, pod: int) -> Samples:
        async with self.http.get(f"{self.admins[pod]}/metrics") as answer:
            page = await answer.text()
        found: Samples = {}
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
        return found


@pytest.fixture
async def pods(tmp_path: Path) -> AsyncIterator[Pods]:
    model = SimulatedModel(seed=1, behaviours=parse_behaviours([{"name": "quick", "latency": {"fixedMs": 0}}]))
    async with AsyncExitStack() as stack:
        model_url = await stack.enter_async_context(serving(model))
        gateways = [
            Gateway(
                Settings("default", "ns", f"pod-{n}", tmp_path / f"state-{n}", tmp_path / "keys", networks=LOOPBACK)
            )
            for n in (0, 1)
        ]
        wanted = delivery(
            weight=50,
            stable=arm(url=f"{model_url}/v1"),
            canary=arm(CANARY, f"{model_url}/v1"),
            responseKey=KEY,
            scores=["helpful"],
            shardMetrics=SHARDED,
        )
        for gateway in gateways:
            stack.push_async_callback(gateway.providers.close)
            await gateway.registry.apply("support", wanted)
        urls = [await stack.enter_async_context(serving(gateway.serving_app)) for gateway in gateways]
        admins = [await stack.enter_async_context(serving(gateway.admin_app)) for gateway in gateways]
        http = await stack.enter_async_context(aiohttp.ClientSession())
        yield Pods(gateways, urls, admins, http)


async def test_another_pod_counts_the_vote_for_the_arm_that_answered(pods: Pods) -> None:
    asked: dict[str, dict[str, str]] = {}
    for n in range(24):
        status, answer, headers = await pods.post(0, "/v1/chat/completions", request(user=f"user-{n}"))
        assert status == 200
        asked[answer["id"]] = {
            "variant": headers["x-promptrollout-variant"],
            "version": headers["x-promptrollout-version"],
            "shard": str(shard("salt", f"user-{n}".encode())),
        }
    assert {labels["variant"] for labels in asked.values()} == {"stable", "canary"}
    votes = [pods.post(1, "/v1/feedback", {"response_id": found, "rating": "negative"}) for found in asked]
    votes += [pods.post(1, "/v1/scores", {"response_id": found, "name": "helpful", "value": 0.25}) for found in asked]
    assert all(status == 200 and answer["counted"] for status, answer, _ in await asyncio.gather(*votes))
    found, other = await pods.metrics(1), await pods.metrics(0)
    for variant in ("stable", "canary"):
        of = [labels for labels in asked.values() if labels["variant"] == variant]
        whole = {"variant": variant, "version": of[0]["version"], "age": "1m"}
        assert value(found, names.METRIC_FEEDBACK, rating="negative", **whole) == len(of)
        assert value(found, names.METRIC_SCORE + "_sum", score="helpful", **whole) == len(of) / 4
        for shard_ in {labels["shard"] for labels in of}:
            n = sum(labels["shard"] == shard_ for labels in of)
            assert value(found, names.shard_metric(names.METRIC_FEEDBACK), shard=shard_, **whole) == n
    assert value(found, names.METRIC_FEEDBACK) == 24
    assert value(other, names.METRIC_FEEDBACK) == 0


async def test_the_id_of_a_stream_votes_too(pods: Pods) -> None:
    body = request(user="user-1", stream=True)
    async with pods.http.post(f"{pods.urls[0]}/v1/chat/completions", json=body) as answer:
        lines = [line async for line in answer.content if line.startswith(b"data: {")]
    (found,) = {line.split(b'"id":"')[1].split(b'"')[0].decode() for line in lines}
    assert len(lines) > 1
    status, said, _ = await pods.post(1, "/v1/feedback", {"response_id": found, "rating": "positive"})
    assert (status, said["counted"]) == (200, True)


async def test_a_pod_that_restarts_takes_the_votes_on_answers_before(pods: Pods, tmp_path: Path) -> None:
    _, answer, _ = await pods.post(0, "/v1/chat/completions", request())
    again = Gateway(Settings("default", "ns", "pod-0", tmp_path / "state-0", tmp_path / "keys", networks=LOOPBACK))
    assert await again.registry.load_from_disk() == 1
    assert (await thumb(Caller(again.serving_app), answer["id"])).json["counted"] is True
    await again.providers.close()
