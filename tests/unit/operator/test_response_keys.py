"""The keys of response ids: drawn once, kept over everything, changed in turn without a vote being refused."""

from __future__ import annotations

from datetime import datetime

from promptrollout.api.delivery import DeliverySpec
from promptrollout.operator.delivery import compile_delivery
from promptrollout.operator.response_keys import SIGNS_SECONDS
from tests.unit.operator.test_delivery import V1, V2, intent
from tests.unit.operator.world import rollout_spec, store_with

NOW = 1_800_000_000.0


def compiled(existing: DeliverySpec | None, weight: int = 10, now: float = NOW) -> DeliverySpec:
    return compile_delivery("ns", "uid", rollout_spec(), intent(weight), [None], existing, store_with(V1, V2), now=now)


def keys(found: DeliverySpec) -> tuple[str | None, str | None, str | None]:
    """Previous, signing, next."""
    assert found.response_keys is not None
    return found.response_keys.previous, found.response_key, found.response_keys.next


def test_every_rollout_has_keys_of_its_own_and_keeps_them_while_the_delivery_changes() -> None:
    first, second = compiled(None), compiled(None)
    assert first.response_keys is not None
    assert len({*keys(first), *keys(second)}) == 5, "and none did sign before"
    assert datetime.fromisoformat(first.response_keys.rotated_at).timestamp() == NOW
    changed = compiled(first, 20, NOW + SIGNS_SECONDS - 1)
    assert (keys(changed), changed.sequence) == (keys(first), 2)


def test_their_time_over_the_next_one_signs_with_the_next_change_and_not_for_its_own_sake() -> None:
    first, later = compiled(None), NOW + SIGNS_SECONDS
    assert compiled(first, now=later) == first
    found = compiled(first, 20, later)
    assert keys(found)[:2] == keys(first)[1:], "which every pod has known since it was drawn"
    assert keys(found)[2] not in keys(first)
    assert found.sequence == 2
    assert keys(compiled(found, 30, later + 1)) == keys(found)
    again = compiled(found, 30, later + SIGNS_SECONDS)
    assert keys(again)[:2] == keys(found)[1:]


def test_a_delivery_of_a_release_that_knew_one_key_gets_the_others_with_its_next_change() -> None:
    old = compiled(None).model_copy(update={"response_keys": None})
    assert compiled(old) == old
    found = compiled(old, 20)
    assert keys(found)[:2] == (None, old.response_key)
    assert keys(compiled(found, 30, NOW + SIGNS_SECONDS))[0] == old.response_key


def test_who_takes_the_key_out_gets_others_altogether() -> None:
    first = compiled(None)
    found = compiled(first.model_copy(update={"response_key": None}))
    assert found.sequence == 2
    assert not set(keys(found)) & set(keys(first)) - {None}
