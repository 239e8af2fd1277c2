"""What is remembered of objects: once per version, and of none that is gone."""

from promptrollout.api.rollout import RolloutStatus
from promptrollout.operator.app import Operator
from promptrollout.operator.cluster.identity import OncePerModel, OncePerObject
from promptrollout.operator.cluster.queue import Key
from promptrollout.operator.config import Config, pod_environment
from promptrollout.operator.delivery import copies
from promptrollout.operator.rollouts.owned_copies import OwnedCopies
from tests.unit.operator.world import Object, a_copy, an_object, prompt, store_with


def test_each_version_is_looked_at_once_and_only_the_last_is_kept() -> None:
    asked: list[int] = []

    def weight_of(item: Object) -> int:
        asked.append(item["spec"]["weight"])
        return asked[-1]

    once = OncePerObject("PromptDelivery", weight_of)
    for weight in range(3000):
        item = an_object("PromptDelivery", "app", {"weight": weight})
        assert once(item) == once(item) == weight
    assert asked == list(range(3000))
    assert len(once) == 1


async def test_an_object_that_is_gone_is_forgotten() -> None:
    operator = Operator(Config(), pod_environment({}), client=None)  # type: ignore[arg-type]
    known = len(copies.prompt_of)
    items = [a_copy("gone", model=f"m{n}") for n in range(5)]
    for item in items:
        operator._deliver("PromptVersion", "ADDED", item)
        assert copies.prompt_of(item) == prompt(model=item["spec"]["model"])
    assert len(copies.prompt_of) == known + 5
    for item in items:
        operator._deliver("PromptVersion", "DELETED", item)
    assert len(copies.prompt_of) == known


async def test_copies_of_a_rollout_that_is_gone_are_forgotten() -> None:
    item = a_copy()
    store = store_with(item)
    ref = copies.ref_of(item)
    key, status = Key("PromptRollout", "ns", "app"), RolloutStatus(stable=ref)
    owned = OwnedCopies(None, store)  # type: ignore[arg-type]
    await owned.restore(key, status, None)
    owned.forget(key)
    store.remove("PromptVersion", "ns", item["metadata"]["name"], item["metadata"]["uid"])
    # had it been remembered, it would be made again: there is no API to make it with
    assert await owned.restore(key, status, None) == {}


def test_what_is_known_of_a_model_goes_with_it() -> None:
    once = OncePerModel(copies.digest_of)
    given = prompt(model="once")
    assert once(given) == once(given) == copies.digest_of(given)
    assert len(once) == 1
    del given
    assert len(once) == 0
