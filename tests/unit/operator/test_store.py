"""The store takes news in any order and keeps what is newest."""

from typing import Any

from promptrollout.operator.cluster.queue import Key
from promptrollout.operator.cluster.store import Store


def item(name: str, version: int, uid: str | None = None) -> dict[str, Any]:
    return {"metadata": {"namespace": "ns", "name": name, "uid": uid or f"uid-{name}", "resourceVersion": str(version)}}


def test_older_news_change_nothing() -> None:
    changes: list[Key] = []
    store = Store(lambda key, _before, _after: changes.append(key))
    assert store.put("Pod", item("a", 9))
    assert not store.put("Pod", item("a", 9))
    assert not store.put("Pod", item("a", 10 - 2))
    assert store.put("Pod", item("a", 10))
    assert len(changes) == 2


def test_only_the_very_object_is_removed() -> None:
    store = Store()
    store.put("Pod", item("a", 9, "new"))
    assert not store.remove("Pod", "ns", "a", "old")
    assert store.remove("Pod", "ns", "a", "new")
    assert store.get("Pod", "ns", "a") is None


def test_a_list_finds_what_no_watch_reported() -> None:
    store = Store()
    store.put("Pod", item("gone", 1))
    store.put("Pod", item("changed", 2))
    store.put("Pod", item("same", 3))
    known = store.known("Pod")
    store.put("Pod", item("meanwhile", 9))  # a watch was quicker than the list
    corrections = store.replace_list("Pod", [item("changed", 7), item("same", 3), item("new", 8)], known)
    assert corrections == 3
    assert {i["metadata"]["name"] for i in store.all("Pod")} == {"changed", "same", "new", "meanwhile"}


def test_a_list_goes_back_in_time_after_a_restore() -> None:
    store = Store()
    store.put("Pod", item("a", 500))
    assert store.replace_list("Pod", [item("a", 20)], store.known("Pod")) == 1
    found = store.get("Pod", "ns", "a")
    assert found is not None
    assert found["metadata"]["resourceVersion"] == "20"


def test_a_list_that_is_older_than_a_watch_does_not_win() -> None:
    store = Store()
    store.put("Pod", item("a", 5))
    known = store.known("Pod")
    store.put("Pod", item("a", 6))
    assert store.replace_list("Pod", [item("a", 5)], known) == 0


def test_objects_are_found_by_the_rollout_that_they_carry() -> None:
    store = Store()
    labelled = item("a-1", 1)
    labelled["metadata"]["labels"] = {"promptrollout.dev/rollout": "a"}
    store.put("PromptVersion", labelled)
    store.put("PromptVersion", item("other", 2))
    assert store.of_rollout("PromptVersion", "ns", "a") == [labelled]
    store.put("PromptVersion", item("a-1", 3))  # the label was taken off
    assert store.of_rollout("PromptVersion", "ns", "a") == []
    store.put("PromptVersion", labelled | {"metadata": labelled["metadata"] | {"resourceVersion": "4"}})
    assert store.remove("PromptVersion", "ns", "a-1", "uid-a-1")
    assert store.of_rollout("PromptVersion", "ns", "a") == []
