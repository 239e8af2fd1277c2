"""The keys of response ids: drawn once, changed in turn, and readable by people only while old pods need them so."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from promptrollout.api.delivery import DeliverySpec, PodReport, ResponseKeys
from promptrollout.api.signing_key import SigningKeySpec
from promptrollout.cluster import ApiException
from promptrollout.operator.cluster.api import Stale
from promptrollout.operator.cluster.queue import Key
from promptrollout.operator.cluster.store import Store
from promptrollout.operator.delivery.compile import compile_delivery
from promptrollout.operator.delivery.signing_keys import SIGNS_SECONDS, KeyReaders, ensure, read, wanted
from tests.unit.operator.delivery.test_delivery import V1, V2, intent
from tests.unit.operator.world import rollout_spec, store_with

NOW = 1_800_000_000.0
KEY = Key("PromptRollout", "ns", "app")
OLD, OLD_NEXT = "ab" * 32, "cd" * 32


def compiled(existing: DeliverySpec | None = None, read_keys: bool | None = None, weight: int = 10) -> DeliverySpec:
    return compile_delivery(
        "ns", "uid", rollout_spec(), intent(weight), [None], existing, store_with(V1, V2), pods_read_keys=read_keys
    )


def of_a_release_before() -> DeliverySpec:
    keys = ResponseKeys(next=OLD_NEXT, rotated_at="2027-01-01T00:00:00Z")
    return compiled().model_copy(update={"response_key": OLD, "response_keys": keys})


def keys(found: SigningKeySpec) -> tuple[str | None, str, str]:
    return found.previous, found.key, found.next


def test_a_new_delivery_has_no_key_and_its_signing_key_is_drawn_once() -> None:
    delivery = compiled()
    assert (delivery.response_key, delivery.response_keys) == (None, None)
    first, second = wanted(None, delivery, NOW), wanted(None, delivery, NOW)
    assert len({*keys(first), *keys(second)}) == 5, "each rollout has its own, and none did sign before"
    assert datetime.fromisoformat(first.rotated_at).timestamp() == NOW
    assert wanted(first, compiled(delivery, weight=20), NOW + SIGNS_SECONDS - 1) == first


def test_their_time_over_the_next_one_signs_which_every_pod_has_known() -> None:
    delivery = compiled()
    first = wanted(None, delivery, NOW)
    found = wanted(first, delivery, NOW + SIGNS_SECONDS)
    assert keys(found)[:2] == keys(first)[1:]
    assert found.next not in keys(first)
    again = wanted(found, delivery, NOW + 2 * SIGNS_SECONDS)
    assert keys(again)[:2] == keys(found)[1:]


def test_keys_leave_the_delivery_once_all_pods_have_others_and_conversations_go_on_for_a_month() -> None:
    old = of_a_release_before()
    assert compiled(old) == old, "nobody knows what pods read, so nothing changes"
    assert compiled(old, False) == old, "a pod reads nothing else"
    before = wanted(None, old, NOW)
    assert (before.readable, before.readable_until) == ([OLD, OLD_NEXT], None)
    assert {OLD, OLD_NEXT}.isdisjoint(keys(before)), "nobody could read these"
    found = compiled(old, True)
    assert (found.response_key, found.response_keys, found.sequence) == (None, None, old.sequence + 1)
    after = wanted(before, found, NOW)
    assert (after.readable, keys(after)) == ([OLD, OLD_NEXT], keys(before))
    assert wanted(after, found, NOW + SIGNS_SECONDS - 1).readable == [OLD, OLD_NEXT]
    assert wanted(after, found, NOW + SIGNS_SECONDS).readable == []


def test_pods_that_read_no_signing_keys_get_one_in_the_delivery() -> None:
    """A gateway whose image is pinned to a release before."""
    first = compiled()
    found = compiled(first, False)
    assert (len(found.response_key or ""), found.sequence) == (64, 2)
    assert compiled(found, False) == found
    assert wanted(wanted(None, first, NOW), found, NOW).readable == [found.response_key]


SAID = list[bool | str | None]


@pytest.mark.parametrize(
    ("said", "at_once", "after_a_minute"),
    [
        ([True, True], True, True),
        ([True, None], None, False),
        ([None, None], None, False),
        ([True, False], None, None),
        ([False, None], None, False),
        ([], None, None),
        ([True, "no answer"], None, None),
        ([None, "no answer"], None, None),
    ],
)
def test_what_pods_say_of_them(said: SAID, at_once: bool | None, after_a_minute: bool | None) -> None:
    readers = KeyReaders()
    assert readers.all_read(reports(said), "app", 0) is at_once
    assert readers.all_read(reports(said), "app", 59) is at_once
    assert readers.all_read(reports(said), "app", 60) is after_a_minute


def test_a_pod_that_cannot_read_them_for_a_moment_brings_no_readable_key_back() -> None:
    """A pod whose role was bound late, or while a chart is upgraded. Votes under a readable key would be anybody's."""
    readers, delivery = KeyReaders(), compiled(of_a_release_before(), True)
    for now, said in (
        (0, [True, None]),
        (50, [True, None]),
        (55, [True, True]),
        (70, [True, None]),
        (129, [True, None]),
    ):
        delivery = compiled(delivery, readers.all_read(reports(said), "app", now))
        assert delivery.response_key is None
    assert readers.all_read(reports([None, True]), "app", 131) is None, "it is another pod that says so now"
    assert compiled(delivery, readers.all_read(reports([None, True]), "app", 191)).response_key is not None


def test_a_pod_that_has_not_heard_the_api_server_says_nothing() -> None:
    for now in (0, 60):
        assert KeyReaders().all_read([report("a", None, loaded=False)], "app", now) is None
    assert KeyReaders().all_read([report("a", True, name="other")], "app", 0) is None, "it has not loaded this one yet"


def reports(said: SAID) -> list[PodReport | str]:
    return [each if isinstance(each, str) else report(f"pod-{n}", each) for n, each in enumerate(said)]


def report(pod: str, signing_key: bool | None, *, name: str = "app", loaded: bool = True) -> PodReport:
    one = {"name": name, "rolloutUID": "uid", "sequence": 1, "weight": 0, "stable": "sha256:" + "0" * 64}
    rollouts = [one if signing_key is None else {**one, "signingKey": signing_key}]
    return PodReport.model_validate({"pod": pod, "formatVersions": [1], "loaded": loaded, "rollouts": rollouts})


class FakeApi:
    """One object, with a version that grows."""

    def __init__(self) -> None:
        self.item: dict[str, Any] | None = None
        self.refuses: ApiException | None = None
        self.writes = 0

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        return self.item

    async def create(self, kind: str, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        if self.item is not None:
            raise ApiException(status=409, reason="exists")
        return await self.apply(kind, namespace, body["metadata"]["name"], body)

    async def apply(self, kind: str, namespace: str, name: str, body: dict[str, Any]) -> dict[str, Any]:
        if self.refuses is not None:
            raise self.refuses
        self.writes += 1
        metadata = {"uid": "u", **body["metadata"], "resourceVersion": str(self.writes)}
        self.item = {**body, "metadata": metadata}
        return self.item


async def test_it_is_written_once_and_with_the_labels_by_which_pods_find_it() -> None:
    api, store = FakeApi(), Store()
    for _ in range(2):
        await ensure(KEY, compiled(), None, api, store, NOW)  # type: ignore[arg-type]
    assert api.writes == 1
    assert api.item is not None
    assert api.item["metadata"]["labels"]["promptrollout.dev/gateway"] == "default"
    assert "ownerReferences" not in api.item["metadata"], (
        "it outlives a rollout that is made anew, as its delivery does"
    )
    first = read(api.item)
    # the delivery's own keys are kept for conversations by the very write before they leave it
    await ensure(KEY, compiled(), of_a_release_before(), api, store, NOW)  # type: ignore[arg-type]
    assert first is not None
    assert read(api.item) == first.model_copy(update={"readable": [OLD, OLD_NEXT]})


async def test_one_that_was_deleted_is_drawn_anew_and_one_that_was_not_seen_is_taken_over() -> None:
    api, store = FakeApi(), Store()
    await ensure(KEY, compiled(), None, api, store, NOW)  # type: ignore[arg-type]
    first = read(api.item)
    with pytest.raises(Stale):
        await ensure(KEY, compiled(), None, api, Store(), NOW)  # type: ignore[arg-type]
    api.item = None
    await ensure(KEY, compiled(), None, api, Store(), NOW)  # type: ignore[arg-type]
    second = read(api.item)
    assert first is not None
    assert second is not None
    assert set(keys(first)) & set(keys(second)) == {None}


async def test_a_refusal_keeps_no_rollback_from_being_delivered(caplog: pytest.LogCaptureFixture) -> None:
    api = FakeApi()
    api.refuses = ApiException(status=403, reason="quota")
    await ensure(KEY, compiled(), None, api, Store(), NOW)  # type: ignore[arg-type]
    assert "its PromptSigningKey cannot be written: HTTP 403 quota" in caplog.text
