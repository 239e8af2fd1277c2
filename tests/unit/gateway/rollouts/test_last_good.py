"""The last good configuration on disk: whole or ignored."""

from pathlib import Path

import pytest

from promptrollout.gateway.rollouts.last_good import Store


@pytest.fixture
def errors() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, errors: list[str]) -> Store:
    return Store(tmp_path / "state", errors.append)


def test_what_was_saved_is_loaded(store: Store, errors: list[str]) -> None:
    assert store.load() == {}
    assert store.load_overrides() == set()
    store.save("a", {"sequence": 1})
    store.save("a", {"sequence": 2})
    store.save("b", {"text": "Zoë"})
    store.save_overrides({"b"})
    assert store.load() == {"a": {"sequence": 2}, "b": {"text": "Zoë"}}
    assert store.load_overrides() == {"b"}
    store.forget("a")
    store.forget("a")
    assert set(store.load()) == {"b"}
    assert errors == []


@pytest.mark.parametrize("content", [b"", b"{}", b'0\n{"sequence": 9}', b"\xff\xfe"])
def test_a_corrupt_file_is_ignored_and_counted(store: Store, errors: list[str], tmp_path: Path, content: bytes) -> None:
    store.save("good", {"sequence": 1})
    (tmp_path / "state" / "deliveries" / "bad.json").write_bytes(content)
    (tmp_path / "state" / "overrides").write_bytes(content)
    assert store.load() == {"good": {"sequence": 1}}
    assert store.load_overrides() == set()
    assert errors == ["checksum", "checksum"]


def test_a_torn_write_leaves_the_old_one(store: Store, tmp_path: Path) -> None:
    store.save("a", {"sequence": 1})
    (tmp_path / "state" / "deliveries" / ".a.json.99").write_bytes(b"half")
    assert store.load() == {"a": {"sequence": 1}}


def test_a_disk_that_cannot_be_written_is_counted_not_raised(errors: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    store = Store(tmp_path / "file", errors.append)
    store.save("a", {})
    assert store.load() == {}
    assert errors[0] == "write"


def test_a_disk_that_may_not_be_looked_into_is_counted_not_raised(
    store: Store, errors: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a pod under another user than the one who wrote it."""
    store.save("a", {"sequence": 1})
    store.save_overrides({"a"})

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    for name in ("read_bytes", "stat"):
        monkeypatch.setattr(Path, name, forbidden)
    assert (store.load(), store.load_overrides()) == ({}, set())
    assert errors == ["read", "read"]
