"""Conversations keep their version: for a while, not against a rollback, and without a mark on the comparison."""

from __future__ import annotations

from typing import Any

import pytest

from promptrollout.api import names
from promptrollout.gateway.assignment.bucketing import bucket, unit_hash
from promptrollout.gateway.assignment.response_id import ResponseId, ResponseIds
from promptrollout.gateway.process import Gateway
from promptrollout.gateway.rollouts.last_good import Store
from promptrollout.gateway.rollouts.loader import Loader
from promptrollout.gateway.rollouts.registry import Registry
from promptrollout.gateway.server.app import Limits, ServingApp
from promptrollout.llm.protocols.signed_reasoning import without_signed_reasoning
from tests.unit.gateway.kit import (
    CANARY,
    KEY,
    Answered,
    Caller,
    Provider,
    arm,
    completion,
    counted,
    delivery,
    request,
    samples,
    says,
    value,
)

IDS = ResponseIds("uid-1", bytes.fromhex(KEY))
OURS = {"stable": "a" * 10, "canary": "b" * 10}
# by bucket: on the canary from 5 % on, from 50 % on, never below 100 %
EARLY, LATE, NEVER = (
    next(f"user-{n}" for n in range(10_000) if low <= bucket(unit_hash("salt", f"user-{n}".encode())) < high)
    for low, high in ((0, 500), (500, 5_000), (9_000, 10_000))
)


class Talk:
    """Requests at a time that the test sets."""

    def __init__(self, gateway: Gateway, provider: Provider) -> None:
        self.now = 1_700_000_000.0
        self.sequence = 0
        self.gateway, self.provider = gateway, provider
        store = Store(gateway.settings.state_dir / "talk", lambda _: None)
        loader = Loader(gateway.providers)
        self.registry = Registry(loader, store, gateway.counters, wall_clock=lambda: self.now)
        app = ServingApp(self.registry, gateway.counters, Limits(), wall_clock=lambda: self.now)
        self.caller = Caller(app)

    async def load(self, weight: int, canary: Any = None, **changes: Any) -> None:
        self.sequence += 1
        arms = {"stable": arm(url=self.provider.url), "canary": canary or arm(CANARY, self.provider.url)}
        wanted = {**arms, "weight": weight, "responseKey": KEY, **changes}
        await self.registry.apply("support", delivery(self.sequence, **wanted))

    async def ask(self, user: str | None, after: Answered | None = None, **changes: Any) -> Answered:
        headers = {"x-promptrollout-pin": after.json["id"]} if after else {}
        return await self.caller.post(request(user=user, **changes), headers=headers)


@pytest.fixture
async def talk(gateway: Gateway, provider: Provider) -> Talk:
    return Talk(gateway, provider)


def version(answered: Answered) -> str:
    assert answered.status == 200, answered.body
    (found,) = [variant for variant, of in OURS.items() if of == answered.headers["x-promptrollout-version"]]
    return found


async def test_a_conversation_stays_on_stable_when_the_weight_grows(talk: Talk, gateway: Gateway) -> None:
    await talk.load(5)
    first = await talk.ask(LATE)
    talk.now += 60
    await talk.load(50)
    talk.now += 60
    assert version(first) == "stable"
    assert version(await talk.ask(LATE)) == "canary", "a new conversation"
    second = await talk.ask(LATE, first)
    assert version(second) == "stable"
    assert counted(gateway) == {"stable": (1, 0), "canary": (1, 0), "stable-outside": (1, 0)}
    assert version(await talk.ask(LATE, second)) == "stable"


async def test_neither_arm_counts_conversations_from_before_the_weight_of_now(talk: Talk, gateway: Gateway) -> None:
    await talk.load(5)
    before = {user: await talk.ask(user) for user in (EARLY, LATE, NEVER)}
    talk.now += 60
    await talk.load(50)
    talk.now += 60
    after = {user: await talk.ask(user) for user in before}
    assert counted(gateway) == {"stable": (3, 0), "canary": (3, 0)}
    for user, answered in before.items():
        await talk.ask(user, answered)
    assert counted(gateway) == {
        "stable": (3, 0),
        "canary": (3, 0),
        "stable-outside": (2, 0),
        "canary-outside": (1, 0),
    }
    for user, answered in after.items():
        await talk.ask(user, answered)
    assert counted(gateway)["stable"] == (4, 0)
    assert counted(gateway)["canary"] == (5, 0)
    await talk.load(50, latencyEdgesSeconds=["2.5"])
    for user, answered in after.items():
        await talk.ask(user, answered)
    assert counted(gateway)["canary"] == (7, 0), "nobody was assigned anew"


async def test_nor_those_that_an_override_began(talk: Talk, gateway: Gateway) -> None:
    await talk.load(50)
    await talk.registry.set_overrides({"support"})
    talk.now += 60
    during = {user: await talk.ask(user) for user in (LATE, NEVER)}
    talk.now += 60
    await talk.registry.set_overrides(set())
    for user, answered in during.items():
        assert version(await talk.ask(user, answered)) == "stable"
    assert counted(gateway) == {"stable": (2, 0), "stable-outside": (2, 0)}


async def test_a_conversation_stays_on_the_canary_while_it_takes_part(talk: Talk, gateway: Gateway) -> None:
    await talk.load(50)
    first = await talk.ask(LATE)
    talk.now += 60
    await talk.load(5)
    assert version(first) == "canary"
    assert version(await talk.ask(LATE, first)) == "canary"
    assert version(await talk.ask(None, first)) == "canary", "whoever it is"
    assert counted(gateway) == {"canary": (1, 0), "canary-outside": (2, 0)}
    await talk.load(0)
    assert version(await talk.ask(LATE, first)) == "stable", "rolled back"
    await talk.load(50)
    await talk.registry.set_overrides({"support"})
    assert version(await talk.ask(LATE, first)) == "stable", "the emergency override is in force"


async def test_a_promoted_version_keeps_its_conversations(talk: Talk) -> None:
    await talk.load(50)
    first = await talk.ask(LATE)
    await talk.load(100, stable=arm(CANARY, talk.provider.url), canary=arm("c" * 64, talk.provider.url))
    assert version(await talk.ask(LATE, first)) == "canary"
    assert (await talk.ask(LATE)).headers["x-promptrollout-version"] == "c" * 10


async def test_not_where_the_audience_excludes_it(talk: Talk) -> None:
    await talk.load(50)
    first = await talk.ask(LATE)
    inside = {"include": [{"header": "x-plan", "values": ["beta"]}]}
    await talk.load(50, audience=inside)
    assert version(await talk.ask(LATE, first)) == "stable"


@pytest.mark.parametrize(("max_age", "turns"), [(None, 3), (1200, 1), (0, 0)])
async def test_it_ends_by_the_conversation_s_age_however_busy(talk: Talk, max_age: int | None, turns: int) -> None:
    stickiness = {} if max_age is None else {"stickiness": {"by": "User", "pinMaxAgeSeconds": max_age}}
    await talk.load(5, **stickiness)
    last = await talk.ask(LATE)
    await talk.load(50, **stickiness)
    for turn in range(1, 6):
        talk.now += 1100
        last = await talk.ask(LATE, last)
        assert version(last) == ("stable" if turn <= turns else "canary"), turn


@pytest.mark.parametrize("pin", ["chatcmpl-1", "canary", "é", IDS.tag.hex()])
async def test_a_pin_that_is_no_id_of_an_answer_is_the_caller_s_fault(talk: Talk, gateway: Gateway, pin: str) -> None:
    await talk.load(50)
    refused = await talk.caller.post(request(user=LATE), headers={"x-promptrollout-pin": pin})
    assert (refused.status, refused.error["code"]) == (400, "invalid_pin")
    assert refused.error["param"] == "x-promptrollout-pin"
    assert "`id` of an answer" in refused.error["message"]
    refused = await talk.caller.post(request(user=LATE), "/v1/messages", {"x-promptrollout-pin": pin})
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert counted(gateway) == {}


STRANGE = [ResponseIds(uid, bytes.fromhex("77" * 32)) for uid in ("uid-1", "uid-2")]
ANSWER = ResponseId("chatcmpl-1", "a" * 10, "stable", 3, 1_700_000_000, b"xx", 1_700_000_000)


@pytest.mark.parametrize("pin", ["", "x" * 2000, *(ids.wrap(ANSWER) for ids in STRANGE)])
async def test_what_is_no_pin_of_the_rollout_is_ignored(talk: Talk, pin: str) -> None:
    await talk.load(50)
    headers = {"x-promptrollout-pin": pin}
    assert version(await talk.caller.post(request(user=LATE), headers=headers)) == "canary"


async def test_an_answer_before_in_the_body_pins_and_goes_on_as_the_provider_s_own(talk: Talk) -> None:
    await talk.load(5)
    talk.provider.script.append(says(body=completion(id="resp_1")))
    first = await talk.ask(LATE)
    await talk.load(50)
    second = await talk.ask(LATE, previous_response_id=first.json["id"])
    assert version(second) == "stable"
    assert talk.provider.requests[-1]["previous_response_id"] == "resp_1"
    talk.now += 3600
    third = await talk.ask(LATE, previous_response_id=second.json["id"])
    assert version(third) == "canary", "the same provider keeps it for either version"
    assert talk.provider.requests[-1]["previous_response_id"] == "chatcmpl-1"


async def test_what_another_provider_keeps_cannot_cross(talk: Talk, gateway: Gateway) -> None:
    async with Provider() as other:
        canary = arm(CANARY, other.url, provider_name="other")
        await talk.load(50, canary)
        first = await talk.ask(LATE)
        assert version(first) == "canary"
        await talk.load(0, canary)
        before = counted(gateway)
        refused = await talk.ask(LATE, previous_response_id=first.json["id"])
        assert (refused.status, refused.error["code"]) == (409, "conversation_elsewhere")
        assert refused.error["param"] == "previous_response_id"
        assert version(await talk.ask(LATE, first)) == "stable", "its messages can"
        assert counted(gateway) == {**before, "stable": (1, 0)}
        found = await samples(gateway)
        assert value(found, "promptrollout_gateway_rejected_requests_total", code="conversation_elsewhere") == 1


async def test_nor_does_it_where_the_canary_s_provider_is_down(talk: Talk, gateway: Gateway) -> None:
    async with Provider() as other:
        canary = arm(CANARY, other.url, provider_name="other")
        await talk.load(50, canary)
        first = await talk.ask(LATE)
    before = counted(gateway)
    refused = await talk.ask(LATE, previous_response_id=first.json["id"])
    assert (refused.status, refused.error["code"]) == (409, "conversation_elsewhere")
    assert counted(gateway) == before
    assert talk.provider.requests == []
    assert version(await talk.ask(LATE)) == "stable", "what starts anew is answered by stable"


async def test_a_conversation_that_a_provider_keeps_stays_on_stable_where_the_canary_has_another(
    talk: Talk, gateway: Gateway
) -> None:
    async def ask(**state: Any) -> Answered:
        return await talk.caller.post({"model": "support", "user": LATE, "input": "Hi", **state}, path="/v1/responses")

    async with Provider() as other:
        talk.provider.script += [
            says(body={"id": "resp_1", "object": "response", "status": "completed", "output": []})
        ] * 3
        await talk.load(50, arm(CANARY, other.url, provider_name="other"))
        assert version(await ask(conversation="conv_1")) == "stable"
        assert version(await ask(conversation={"id": "conv_1"})) == "stable"
        assert {name for name, of in counted(gateway).items() if of[0]} == {"stable-outside"}
        assert other.requests == []
        await talk.load(50)
        assert version(await ask(conversation="conv_1")) == "canary", "the same provider keeps it for either"


async def test_nor_where_the_canary_s_provider_keeps_none(talk: Talk, gateway: Gateway) -> None:
    async with Provider() as other:
        canary = arm(CANARY, other.url, provider_name="other", provider_type="Anthropic")
        await talk.load(50, canary)
        other.script.append(says(body={"id": "msg_1", "content": [{"type": "text", "text": "Hi"}]}))
        asked = {"model": "support", "user": LATE, "input": "Hello"}
        first = await talk.caller.post(asked, path="/v1/responses")
        assert version(first) == "canary"
        going_on = {**asked, "previous_response_id": first.json["id"]}
        refused = await talk.caller.post(going_on, path="/v1/responses")
        assert (refused.status, refused.error["code"]) == (400, "untranslatable")
        assert refused.error["param"] == "previous_response_id"
        assert counted(gateway) == {"canary": (2, 1)}, "a canary that these callers cannot use is a bad one"
        assert talk.provider.requests == [], "stable's provider does not know that answer"
        item = {"type": "message", "role": "user", "content": "And?"}
        items = [{"role": "user", "content": "Hello"}, *first.json["output"], item]
        other.script.append(says(body={"id": "msg_2", "content": [{"type": "text", "text": "Well"}]}))
        assert version(await talk.caller.post({**asked, "input": items}, path="/v1/responses")) == "canary"


SIGNED = [
    {"role": "user", "content": "Hello"},
    {
        "role": "assistant",
        "content": [{"type": "thinking", "thinking": "Hm.", "signature": "s"}, {"type": "text", "text": "Hi"}],
        "reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}],
    },
]
UNSIGNED = [SIGNED[0], {"role": "assistant", "content": [{"type": "text", "text": "Hi"}]}]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"messages": SIGNED}, {"messages": UNSIGNED}),
        (
            {"input": [{"type": "reasoning", "encrypted_content": "x"}, {"type": "message"}]},
            {"input": [{"type": "message"}]},
        ),
        ({"input": "Hello"}, {"input": "Hello"}),
        ({"messages": ["odd", 7, {"content": [None, {"type": ["thinking"]}]}]}, None),
        ({}, None),
    ],
)
def test_what_is_signed_reasoning(given: dict[str, Any], kept: dict[str, Any] | None) -> None:
    assert without_signed_reasoning(given) == (given if kept is None else kept)


async def test_reasoning_that_another_model_signed_is_dropped(talk: Talk) -> None:
    def history(provider: Provider) -> Any:
        return provider.requests[-1]["messages"][1:]

    async with Provider() as other:
        canary = arm(CANARY, other.url, provider_name="other")
        await talk.load(50, canary)
        first = await talk.ask(LATE)
        await talk.ask(LATE, first, messages=SIGNED)
        assert history(other) == SIGNED, "its own"
        await talk.load(0, canary)
        await talk.ask(LATE, first, messages=SIGNED)
        assert history(talk.provider) == UNSIGNED
        await talk.ask(LATE, messages=SIGNED)
        assert history(talk.provider) == SIGNED, "nobody said whose it is"


async def test_nor_does_a_provider_that_stands_in_get_it(talk: Talk) -> None:
    async with Provider() as other:
        await talk.load(50, arm(CANARY, other.url, provider_name="other"))
    await talk.ask(LATE, messages=SIGNED)
    assert talk.provider.requests[-1]["messages"][1:] == UNSIGNED


async def test_votes_on_pinned_answers_are_outside_too(talk: Talk, gateway: Gateway) -> None:
    await talk.load(50)
    first = await talk.ask(LATE)
    talk.now += 60
    await talk.load(5)
    second = await talk.ask(LATE, first)
    vote = await talk.caller.post({"response_id": second.json["id"], "rating": "negative"}, "/v1/feedback")
    assert vote.json["counted"] is True
    found = await samples(gateway)
    assert value(found, names.METRIC_FEEDBACK, variant="canary-outside", version=OURS["canary"]) == 1
    assert value(found, names.METRIC_FEEDBACK) == 1
