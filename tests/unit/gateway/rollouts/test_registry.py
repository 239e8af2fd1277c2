"""Configurations: swapped in whole, never backwards, the last good one kept, on disk as well."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from promptrollout.gateway.process import Gateway
from promptrollout.gateway.rollouts.load_problems import KEY_PATIENCE_SECONDS
from promptrollout.gateway.rollouts.registry import RETIREMENT_SECONDS
from tests.unit.gateway.kit import CANARY, Caller, Provider, arm, delivery, request


def report(gateway: Gateway) -> dict[str, Any]:
    (found,) = gateway.reporter.report().rollouts
    return found.model_dump(exclude_none=True)


async def test_a_swap_is_whole_and_reported(gateway: Gateway) -> None:
    await gateway.registry.apply("support", delivery(1))
    await gateway.registry.apply("support", delivery(2, weight=25, canary=arm(CANARY)))
    found = report(gateway)
    assert (found["sequence"], found["weight"]) == (2, 25)
    assert (found["stable"], found["canary"]) == ("sha256:" + "a" * 64, "sha256:" + CANARY)
    assert gateway.counters.swaps == 2


async def test_an_older_sequence_is_refused_also_of_another_uid(gateway: Gateway) -> None:
    await gateway.registry.apply("support", delivery(5))
    await gateway.registry.apply("support", delivery(4, weight=50))
    found = report(gateway)
    assert (found["sequence"], found["problem_sequence"]) == (5, 4)
    assert "older than 5" in found["problem"]
    await gateway.registry.apply("support", delivery(4, rolloutUID="uid-2"))
    assert report(gateway)["sequence"] == 5
    await gateway.registry.apply("support", delivery(6, rolloutUID="uid-2"))
    found = report(gateway)
    assert (found["sequence"], found["rollout_uid"]) == (6, "uid-2")
    assert "problem" not in found


async def test_what_is_listed_again_is_not_loaded_again(gateway: Gateway) -> None:
    for _ in range(3):
        await gateway.registry.apply("support", delivery(1))
    assert gateway.counters.swaps == 1


async def test_other_content_under_the_same_sequence_is_refused(gateway: Gateway) -> None:
    await gateway.registry.apply("support", delivery(2, canary=arm(CANARY), weight=5))
    await gateway.registry.apply("support", delivery(2, canary=arm(CANARY), weight=5, memory={"revision": 2}))
    assert "problem" not in report(gateway)
    for _ in range(2):
        await gateway.registry.apply("support", delivery(2, canary=arm(CANARY), weight=50))
    found = report(gateway)
    assert (found["weight"], found["problem_sequence"]) == (5, 2)
    assert "other content" in found["problem"]
    await gateway.registry.apply("support", delivery(3, canary=arm(CANARY), weight=50))
    assert "problem" not in report(gateway)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (arm(messages=[{"role": "system", "content": "{{ open"}]), "stable.prompt.messages[0].content: line 1"),
        (arm(outputSchema={"type": "nonsense"}), "stable.prompt.outputSchema: not a JSON Schema"),
        (arm(provider_needsKey=True), "ModelProvider openai: its key is missing"),
        ({**arm(), "digest": "short"}, "stable.digest: "),
        ({}, "stable.version: Field required"),
    ],
)
async def test_what_does_not_compile_leaves_the_last_good_one_in_service(
    gateway: Gateway, caller: Caller, provider: Provider, broken: dict[str, Any], message: str
) -> None:
    await gateway.registry.apply("support", delivery(1, stable=arm(url=provider.url)))
    await gateway.registry.apply("support", delivery(2, stable=broken))
    found = report(gateway)
    assert (found["sequence"], found["problem_sequence"]) == (1, 2)
    assert found["problem"].startswith(message)
    assert (await caller.post(request())).status == 200


async def test_a_first_delivery_that_does_not_compile_is_reported_below_every_sequence(
    gateway: Gateway, caller: Caller
) -> None:
    await gateway.registry.apply("support", delivery(3, formatVersion=2))
    found = report(gateway)
    assert (found["sequence"], found["problem_sequence"], found["rollout_uid"]) == (0, 3, "uid-1")
    assert "formatVersion: this gateway reads 1" in found["problem"]
    answered = await caller.post(request())
    assert (answered.status, answered.error["code"], answered.headers["retry-after"]) == (
        503,
        "rollout_not_loaded",
        "5",
    )
    assert "see the condition Ready of PromptRollout support" in answered.error["message"]
    assert (await caller.post({}, "/v1/prompts/support/render")).status == 503
    gateway.registry.remove("support")
    assert (await caller.post(request())).status == 404, "it is not there any more"


async def test_a_key_that_appears_or_rotates_is_used(
    gateway: Gateway, caller: Caller, provider: Provider, tmp_path: Path
) -> None:
    await gateway.registry.apply("support", delivery(1, stable=arm(url=provider.url, provider_needsKey=True)))
    await gateway.registry.sweep()
    assert report(gateway)["sequence"] == 0
    assert gateway.counters.refused == {"key_missing": 1}, "said once, however often it is tried"
    key = tmp_path / "keys" / "openai" / "api-key"
    key.parent.mkdir(parents=True)
    key.write_text("first\n")
    await gateway.registry.sweep()
    await caller.post(request())
    (key.parent / "next").write_text("second")
    (key.parent / "next").replace(key)
    assert gateway.providers.refresh_files() == []
    await caller.post(request())
    key.unlink()
    assert "is missing" in gateway.providers.refresh_files()[0]
    await caller.post(request())
    sent = [headers["authorization"] for headers in provider.headers]
    assert sent == ["Bearer first", "Bearer second", "Bearer second"]


async def test_compiled_prompts_and_connections_are_taken_over(gateway: Gateway) -> None:
    await gateway.registry.apply("support", delivery(1, canary=arm(CANARY)))
    before = gateway.registry.find("support")
    await gateway.registry.apply("support", delivery(2, stable=arm(CANARY)))
    after = gateway.registry.find("support")
    assert before is not None
    assert after is not None
    assert before.canary is not None
    assert after.stable.prompt is before.canary.prompt
    assert after.stable.provider is before.stable.provider


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(gateway: Gateway) -> Clock:
    clock = Clock()
    gateway.registry._wall_clock = clock
    return clock


async def test_a_deleted_delivery_is_served_five_more_minutes(
    gateway: Gateway, caller: Caller, provider: Provider, clock: Clock
) -> None:
    await gateway.registry.apply("support", delivery(7, stable=arm(url=provider.url)))
    gateway.registry.remove("support")
    clock.now += RETIREMENT_SECONDS - 1
    assert (await caller.post(request())).status == 200
    clock.now += 2
    answered = await caller.post(request())
    assert (answered.status, answered.error["code"]) == (404, "model_not_found")
    await gateway.registry.sweep()
    assert gateway.reporter.report().rollouts == []
    await gateway.registry.apply("support", delivery(1))
    assert report(gateway)["sequence"] == 1


async def test_retired_at_ends_service_and_its_removal_goes_on(gateway: Gateway, clock: Clock) -> None:
    retired = "2027-01-15T08:00:00Z"  # Clock.now
    await gateway.registry.apply("support", delivery(1))
    await gateway.registry.apply("support", delivery(2, retiredAt=retired))
    assert gateway.registry.find("support")
    clock.now += RETIREMENT_SECONDS
    assert gateway.registry.find("support") is None
    await gateway.registry.apply("support", delivery(2, retiredAt=retired))
    assert gateway.registry.find("support") is None
    await gateway.registry.apply("support", delivery(3))
    assert gateway.registry.find("support")


async def test_what_a_complete_list_does_not_name_is_gone(gateway: Gateway, clock: Clock) -> None:
    await gateway.registry.apply("a", delivery(1))
    await gateway.registry.apply("b", delivery(1))
    assert not gateway.reporter.report().loaded
    gateway.registry.listed({"b"})
    clock.now += RETIREMENT_SECONDS
    assert gateway.registry.names() == ["b"]
    assert gateway.reporter.report().loaded


async def test_a_restart_serves_from_disk_and_takes_the_api_servers_newer_one(gateway: Gateway) -> None:
    await gateway.registry.apply("support", delivery(3, weight=10, canary=arm(CANARY)))
    await gateway.registry.set_overrides({"support"})
    again = Gateway(dataclasses.replace(gateway.settings))
    assert await again.registry.load_from_disk() == 1
    found = report(again)
    assert (found["sequence"], found["overridden"]) == (3, True)
    await again.registry.apply("support", delivery(4))
    assert report(again)["sequence"] == 4
    await again.registry.apply("support", delivery(3))
    assert report(again)["problem_sequence"] == 3
    third = Gateway(dataclasses.replace(gateway.settings))
    await third.registry.load_from_disk()
    assert report(third)["sequence"] == 4


async def test_a_delivery_that_does_not_compile_never_reaches_the_disk(gateway: Gateway) -> None:
    await gateway.registry.apply("support", delivery(1))
    await gateway.registry.apply("support", delivery(2, stable={}))
    again = Gateway(dataclasses.replace(gateway.settings))
    await again.registry.load_from_disk()
    assert report(again)["sequence"] == 1


async def test_the_answer_can_be_narrowed_to_some_rollouts(gateway: Gateway) -> None:
    for name in "abc":
        await gateway.registry.apply(name, delivery(1))
    admin = Caller(gateway.admin_app)
    assert [r["name"] for r in (await admin.get("/rollouts?name=a&name=c&name=z")).json["rollouts"]] == ["a", "c"]
    whole = (await admin.get("/rollouts")).json
    assert len(whole["rollouts"]) == 3
    assert (whole["pod"], whole["formatVersions"]) == ("pod-1", [1])
    assert whole["rollouts"][0]["rolloutUID"] == "uid-1"


# ------------------------------------------------------------------------------------------- a canary takes nobody down


def put_key(folder: Path, provider: str = "openai") -> None:
    key = folder / "keys" / provider / "api-key"
    key.parent.mkdir(parents=True)
    key.write_text("secret\n")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (arm(CANARY, provider_needsKey=True, provider_name="other"), "ModelProvider other: its key is missing"),
        (arm(CANARY, messages=[{"role": "system", "content": "{{ open"}]), "canary.prompt.messages[0].content: line 1"),
        (arm(CANARY, outputSchema={"type": "nonsense"}), "canary.prompt.outputSchema: not a JSON Schema"),
        ({**arm(CANARY), "digest": "short"}, "canary.digest: "),
        ({}, "canary.version: Field required"),
    ],
)
@pytest.mark.parametrize("new_pod", [True, False])
async def test_a_canary_that_cannot_be_loaded_leaves_stable_to_everybody(
    gateway: Gateway, caller: Caller, provider: Provider, broken: dict[str, Any], message: str, new_pod: bool
) -> None:
    stable = arm(url=provider.url)
    if not new_pod:
        await gateway.registry.apply("support", delivery(4, stable=stable, canary=arm("c" * 64), weight=50))
    for _ in range(2):  # listed again, it is tried again
        await gateway.registry.apply("support", delivery(5, stable=stable, canary=broken, weight=100))
        gateway.registry.listed({"support"})
    answered = await caller.post(request())
    assert (answered.status, answered.headers["x-promptrollout-variant"]) == (200, "stable")
    found = report(gateway)
    assert found["sequence"] == (0 if new_pod else 4), "not acknowledged"
    assert found["problem_sequence"] == 5
    assert found["problem"].startswith(f"canary not loaded, stable serves alone: {message}")
    assert (found["stable"], found["weight"], found.get("canary")) == ("sha256:" + "a" * 64, 0, None)
    assert (gateway.counters.swaps, gateway.counters.refused.total()) == (1 if new_pod else 2, 1)
    assert not gateway.registry.waits_for_keys
    await gateway.registry.apply("support", delivery(6, stable=stable))
    found = report(gateway)
    assert (found["sequence"], "problem" in found) == (6, False)


async def test_what_is_wrong_with_both_arms_is_stables_problem(gateway: Gateway) -> None:
    await gateway.registry.apply("support", delivery(5, stable={}, canary={}))
    found = report(gateway)
    assert (found["sequence"], found["problem"]) == (0, "stable.version: Field required")


async def test_a_canary_is_served_as_soon_as_its_key_is_there(
    gateway: Gateway, caller: Caller, provider: Provider, tmp_path: Path
) -> None:
    canary = arm(CANARY, provider.url, provider_needsKey=True, provider_name="other")
    whole = delivery(5, stable=arm(url=provider.url), canary=canary, weight=100)
    await gateway.registry.apply("support", whole)
    await gateway.registry.apply("support", delivery(3))  # late news change nothing
    await gateway.registry.sweep()
    found = report(gateway)
    assert (found["sequence"], found["problem_sequence"]) == (0, 5)
    put_key(tmp_path, "other")
    await gateway.registry.sweep()
    found = report(gateway)
    assert (found["sequence"], found["weight"], found["canary"]) == (5, 100, "sha256:" + CANARY)
    assert "problem" not in found
    assert (await caller.post(request())).headers["x-promptrollout-variant"] == "canary"


async def test_what_was_not_acknowledged_may_change_under_its_sequence(gateway: Gateway) -> None:
    """After a restore the operator numbers on from the highest sequence that pods acknowledged."""
    await gateway.registry.apply("support", delivery(5, canary={}))
    await gateway.registry.apply("support", delivery(5, canary=arm(CANARY), weight=10))
    found = report(gateway)
    assert (found["sequence"], found["weight"], "problem" in found) == (5, 10, False)


async def test_a_newer_delivery_that_waits_for_stables_key_is_not_hidden_by_the_canarys(gateway: Gateway) -> None:
    canary = arm(CANARY, provider_needsKey=True, provider_name="other")
    await gateway.registry.apply("support", delivery(5, canary=canary))
    await gateway.registry.apply("support", delivery(6, stable=arm(provider_needsKey=True, provider_name="third")))
    await gateway.registry.sweep()
    found = report(gateway)
    assert (found["sequence"], found["problem_sequence"]) == (0, 6)
    assert found["problem"].startswith("ModelProvider third: its key")


async def test_a_key_does_not_revive_what_was_deleted(gateway: Gateway, clock: Clock, tmp_path: Path) -> None:
    canary = arm(CANARY, provider_needsKey=True, provider_name="other")
    await gateway.registry.apply("support", delivery(5, canary=canary))
    gateway.registry.remove("support")
    put_key(tmp_path, "other")
    await gateway.registry.sweep()
    clock.now += RETIREMENT_SECONDS
    assert gateway.registry.find("support") is None


async def test_another_rollout_of_the_same_name_acknowledges_for_itself(gateway: Gateway) -> None:
    await gateway.registry.apply("support", delivery(5))
    await gateway.registry.apply("support", delivery(6, rolloutUID="uid-2", canary={}))
    found = report(gateway)
    assert (found["rollout_uid"], found["sequence"], found["problem_sequence"]) == ("uid-2", 0, 6)


# ------------------------------------------------------------------------------------------- when a new pod is ready

BEFORE = {"memory": {"stable": {"version": "support-a", "digest": "sha256:" + "a" * 64}}}


@pytest.mark.parametrize(
    ("spec", "waits"),
    [
        (delivery(2, stable=arm(provider_needsKey=True), **BEFORE), True),
        (delivery(1, stable=arm(provider_needsKey=True), **BEFORE), False),  # served nowhere yet
        (delivery(2, stable=arm(provider_needsKey=True)), False),
        (delivery(2, formatVersion=2, **BEFORE), False),  # waiting cures nothing
        (delivery(2, stable=arm(outputSchema={"type": "nonsense"}), **BEFORE), False),
        (delivery(2, canary=arm(CANARY, provider_needsKey=True, provider_name="other"), **BEFORE), False),
    ],
)
async def test_a_new_pod_waits_for_the_key_of_what_others_serve(
    gateway: Gateway, clock: Clock, spec: dict[str, Any], waits: bool
) -> None:
    gateway.registry.problems._clock = clock
    await gateway.registry.apply("support", spec)
    await gateway.registry.apply("other", delivery(1))
    gateway.registry.listed({"support", "other"})
    assert gateway.registry.waits_for_keys is waits
    clock.now += KEY_PATIENCE_SECONDS
    assert not gateway.registry.waits_for_keys, "one broken rollout does not keep the gateway from being replaced"


async def test_a_first_version_that_pods_have_confirmed_is_waited_for_too(gateway: Gateway) -> None:
    await gateway.registry.apply("support", delivery(1, stable=arm(provider_needsKey=True), **BEFORE))
    gateway.registry.problems.confirmed.add("support")
    gateway.registry.listed({"support"})
    assert gateway.registry.waits_for_keys


async def test_the_wait_ends_with_the_key(gateway: Gateway, tmp_path: Path) -> None:
    await gateway.registry.apply("support", delivery(2, stable=arm(provider_needsKey=True), **BEFORE))
    gateway.registry.listed({"support"})
    assert gateway.registry.waits_for_keys
    put_key(tmp_path)
    await gateway.registry.sweep()
    assert report(gateway)["sequence"] == 2
    assert not gateway.registry.waits_for_keys


async def test_a_pod_that_was_ready_does_not_become_unready_for_a_key(gateway: Gateway) -> None:
    await gateway.registry.apply("other", delivery(1))
    gateway.registry.listed({"other"})
    await gateway.registry.apply("support", delivery(2, stable=arm(provider_needsKey=True), **BEFORE))
    gateway.registry.listed({"other", "support"})
    assert not gateway.registry.waits_for_keys


async def test_what_was_retired_long_ago_does_not_stay_on_the_disk(gateway: Gateway) -> None:
    store = gateway.registry._store
    store.save("old", delivery(1, retiredAt="2020-01-01T00:00:00Z"))
    store.save("support", delivery(1))
    assert await gateway.registry.load_from_disk() == 1
    assert store.load().keys() == {"support"}
