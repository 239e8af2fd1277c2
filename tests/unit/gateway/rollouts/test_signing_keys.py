"""Votes count by keys that people cannot read; conversations go on over the change of keys."""

from __future__ import annotations

import time
from typing import Any

from promptrollout.gateway.assignment.response_id import ResponseId, ResponseIds, provider_tag
from promptrollout.gateway.process import Gateway
from promptrollout.gateway.rollouts.last_good import Store
from promptrollout.gateway.rollouts.signing_keys import SigningKeys
from promptrollout.gateway.server.app import Limits, ServingApp
from tests.unit.gateway.kit import CANARY, KEY, LOOPBACK, STABLE, Answered, Caller, Provider, arm, delivery, request

NOW = 1_700_000_000
SIGNING = "71" * 32
NEXT = "72" * 32


def signing_key(**changes: Any) -> dict[str, Any]:
    """The spec of a PromptSigningKey as it stands in the API server."""
    base = {"gateway": "default", "rolloutUID": "uid-1", "key": SIGNING, "next": NEXT}
    return {**base, "rotatedAt": "2026-01-01T00:00:00Z", "readable": [KEY], **changes}


def token(key: str, at: int = NOW, **changes: Any) -> str:
    """As whoever has a key can make one, whether or not there was an answer."""
    given = ResponseId("chatcmpl-1", STABLE[:10], "stable", 3, at, b"..", at, **changes)
    return ResponseIds("uid-1", bytes.fromhex(key)).wrap(given)


def at_now(gateway: Gateway) -> Caller:
    return Caller(ServingApp(gateway.registry, gateway.counters, Limits(), wall_clock=lambda: NOW))


async def thumb(caller: Caller, response_id: str) -> Answered:
    return await caller.post({"response_id": response_id, "rating": "negative"}, "/v1/feedback")


async def counts(caller: Caller, *keys: str) -> list[Any]:
    found = [await thumb(caller, token(key)) for key in keys]
    return [each.json.get("reason", each.json["counted"]) if each.status == 200 else each.status for each in found]


async def test_ids_that_a_reader_of_deliveries_forges_do_not_count(gateway: Gateway) -> None:
    await gateway.registry.set_signing_key("support", signing_key())
    await gateway.registry.apply("support", delivery())
    caller = at_now(gateway)
    for number in range(200):
        forged = await thumb(caller, token(KEY, NOW - number))
        assert (forged.json["counted"], forged.json["reason"]) == (False, "key_retired")
    assert await counts(caller, SIGNING, NEXT, "99" * 32) == [True, True, 400]


async def test_while_other_pods_know_the_deliverys_key_only_it_signs_and_votes_of_both_count(
    gateway: Gateway, provider: Provider
) -> None:
    """An upgrade, pod by pod: whichever pod a vote reaches counts it."""
    await gateway.registry.apply("support", delivery(1, responseKey=KEY, stable=arm(url=provider.url)))
    await gateway.registry.set_signing_key("support", signing_key())
    caller = Caller(gateway.serving_app)
    of_both = (await caller.post(request())).json["id"]
    old_pod = ResponseIds("uid-1", bytes.fromhex(KEY))
    assert old_pod.unwrap(of_both, time.time()) is not None, "pods of a release before take it"
    assert await counts(at_now(gateway), KEY, SIGNING, NEXT) == [True, True, True]
    await gateway.registry.apply("support", delivery(2, stable=arm(url=provider.url)))
    new = (await caller.post(request())).json["id"]
    assert old_pod.unwrap(new, time.time()) is None
    assert ResponseIds("uid-1", bytes.fromhex(SIGNING)).unwrap(new, time.time()) is not None
    assert (await thumb(caller, of_both)).json == {"object": "feedback", "counted": False, "reason": "key_retired"}
    assert (await thumb(caller, new)).json["counted"]


async def test_a_conversation_from_before_the_change_keeps_its_version_and_its_providers_id(
    gateway: Gateway, provider: Provider
) -> None:
    arms = {"stable": arm(url=provider.url), "canary": arm(CANARY, provider.url)}
    await gateway.registry.set_signing_key("support", signing_key())
    await gateway.registry.apply("support", delivery(weight=100, **arms))
    now = int(time.time())
    before = ResponseId("resp_1", STABLE[:10], "stable", 3, now, provider_tag(provider.url), now)
    previous = ResponseIds("uid-1", bytes.fromhex(KEY)).wrap(before)
    answer = await Caller(gateway.serving_app).post(
        {"model": "support", "user": "u1", "input": "More?", "previous_response_id": previous}, "/v1/responses"
    )
    assert answer.headers["x-promptrollout-variant"] == "stable"
    assert provider.requests[-1]["previous_response_id"] == "resp_1"


async def test_an_id_of_a_time_to_come_is_none(gateway: Gateway) -> None:
    await gateway.registry.set_signing_key("support", signing_key())
    await gateway.registry.apply("support", delivery())
    caller = at_now(gateway)
    assert (await thumb(caller, token(SIGNING, NOW + 60))).json["counted"], "clocks of pods differ"
    late = await thumb(caller, token(SIGNING, NOW + 61))
    assert (late.status, late.error["code"]) == (400, "invalid_response_id")
    assert "has a future time" in late.error["message"]


async def test_renders_of_before_the_change_are_reported_and_forged_reports_are_not_believed(gateway: Gateway) -> None:
    reported = {"reporting": {"cacheSeconds": 0, "settleSeconds": 60}}
    await gateway.registry.apply("support", delivery(1, responseKey=KEY, **reported))
    await gateway.registry.set_signing_key("support", signing_key())
    caller = Caller(gateway.serving_app)

    async def render() -> str:
        return str((await caller.post({"user": "u1"}, "/v1/prompts/support/render")).json["usage_token"])

    async def report(usage_token: str) -> Answered:
        return await caller.post({"token": usage_token, "outcome": "error"}, "/v1/usage")

    before = await render()
    await gateway.registry.apply("support", delivery(2, **reported))
    after = await render()
    own, old = ResponseIds("uid-1", bytes.fromhex(SIGNING)), ResponseIds("uid-1", bytes.fromhex(KEY))
    said = own.unwrap(after, time.time())
    assert said is not None
    forged = await report(old.wrap(said))
    assert (forged.status, forged.error["code"]) == (400, "invalid_token")
    assert (await report(before)).json["counted"]
    assert (await report(after)).json["counted"]


async def test_a_pod_that_starts_without_an_api_server_has_them_on_its_disk(gateway: Gateway) -> None:
    await gateway.registry.set_signing_key("support", signing_key())
    await gateway.registry.apply("support", delivery())
    again = Gateway(gateway.settings)
    assert again.settings.networks is LOOPBACK
    assert await again.registry.load_from_disk() == 1
    assert await counts(at_now(again), SIGNING, KEY) == [True, "key_retired"]
    (report,) = again.reporter.report().rollouts
    assert report.signing_key
    await again.providers.close()


async def test_a_key_that_cannot_be_read_leaves_the_last_one_and_is_not_repeated(gateway: Gateway, caplog: Any) -> None:
    await gateway.registry.set_signing_key("support", signing_key())
    await gateway.registry.set_signing_key("support", signing_key(key="73" * 33))
    await gateway.registry.apply("support", delivery())
    assert await counts(at_now(gateway), SIGNING) == [True]
    assert "PromptSigningKey support: key is not valid: the last key stays in use" in caplog.text
    assert "7373" not in caplog.text


def test_what_no_rollout_has(tmp_path: Any) -> None:
    keys = SigningKeys(Store(tmp_path, lambda operation: None))
    assert (keys.get("support"), keys.has_key("support")) == (None, False)
    keys.refused = True
    assert keys.has_key("support") is None
