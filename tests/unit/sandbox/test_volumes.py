"""Volumes change in one step, and tokens are renewed in time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from promptrollout.sandbox.node.volumes import File, MountError, PodVolumes, renew_at, unix_time, write_atomically

CONTEXT = {"podIP": "127.64.0.1", "hostIP": "127.0.0.1", "nodeName": "sandbox"}


def files(**contents: str) -> dict[str, File]:
    return {name: File(content.encode()) for name, content in contents.items()}


def visible(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir() if not entry.name.startswith(".."))


def test_a_change_switches_all_files_at_once(tmp_path: Path) -> None:
    assert write_atomically(tmp_path, files(a="1", b="1"))
    before = os.readlink(tmp_path / "..data")
    descriptor = os.open(tmp_path / "..data", os.O_RDONLY)  # a reader in mid-flight
    assert write_atomically(tmp_path, files(a="2", c="2"))
    os.close(descriptor)
    assert os.readlink(tmp_path / "..data") != before
    assert visible(tmp_path) == ["a", "c"]
    assert (tmp_path / "a").read_text() == "2"
    assert os.readlink(tmp_path / "a") == "..data/a"
    assert not (tmp_path / before).exists()


def test_the_same_content_is_left_alone(tmp_path: Path) -> None:
    write_atomically(tmp_path, {**files(a="1"), "deep/b": File(b"2", 0o400)})
    before = os.readlink(tmp_path / "..data")
    assert not write_atomically(tmp_path, {**files(a="1"), "deep/b": File(b"2", 0o400)})
    assert os.readlink(tmp_path / "..data") == before
    assert (tmp_path / "deep" / "b").stat().st_mode & 0o777 == 0o400


def test_a_volume_may_become_empty(tmp_path: Path) -> None:
    write_atomically(tmp_path, files(a="1"))
    assert write_atomically(tmp_path, {})
    assert visible(tmp_path) == []


def test_tokens_are_due_at_four_fifths_of_their_life() -> None:
    assert renew_at(1000, 2000, 86400) == 1800
    assert renew_at(1000, 2000, 60) == 1060


class Tokens:
    """Hands out numbered tokens that live for as long as was asked."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.asked: list[tuple[str | None, int]] = []

    async def __call__(self, audience: str | None, seconds: int) -> tuple[str, float]:
        self.asked.append((audience, seconds))
        return f"token-{len(self.asked)}", self.now + seconds


def pod_volumes(
    tmp_path: Path, volume: dict[str, Any], objects: dict[tuple[str, str], dict[str, bytes]], tokens: Tokens
) -> PodVolumes:
    pod = {
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app": "web"}},
        "spec": {"containers": [], "volumes": [{"name": "v", **volume}]},
    }
    return PodVolumes(pod, tmp_path, lambda kind, name: objects.get((kind, name)), tokens, lambda: tokens.now, 86400)


async def test_a_projected_volume_renews_its_token(tmp_path: Path) -> None:
    tokens = Tokens()
    sources = [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 100}},
        {"configMap": {"name": "ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "ns", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
    ]
    volumes = pod_volumes(
        tmp_path, {"projected": {"sources": sources}}, {("ConfigMap", "ca"): {"ca.crt": b"pem"}}, tokens
    )
    assert await volumes.refresh(CONTEXT)
    assert visible(tmp_path / "v") == ["ca.crt", "ns", "token"]
    assert tokens.asked == [(None, 600)]  # the API server grants no less
    assert volumes.next_renewal == 1000 + 480
    tokens.now += 479
    assert not await volumes.refresh(CONTEXT)
    tokens.now += 1
    assert await volumes.refresh(CONTEXT)
    assert (tmp_path / "v" / "token").read_text() == "token-2"
    assert volumes.sources() == {("ConfigMap", "ca")}


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        ({"secret": {"secretName": "none"}}, 'secret "none" not found'),
        ({"configMap": {"name": "c", "items": [{"key": "k", "path": "k"}]}}, "non-existent key: k"),
        ({"hostPath": {"path": "/"}}, "does not support hostPath"),
    ],
)
async def test_what_cannot_be_mounted_is_named(tmp_path: Path, volume: dict[str, Any], message: str) -> None:
    volumes = pod_volumes(tmp_path, volume, {("ConfigMap", "c"): {}}, Tokens())
    with pytest.raises(MountError, match=message):
        await volumes.refresh(CONTEXT)


async def test_optional_objects_may_be_missing_and_appear_later(tmp_path: Path) -> None:
    objects: dict[tuple[str, str], dict[str, bytes]] = {}
    volumes = pod_volumes(tmp_path, {"secret": {"secretName": "s", "optional": True}}, objects, Tokens())
    await volumes.refresh(CONTEXT)
    assert visible(tmp_path / "v") == []
    objects["Secret", "s"] = {"api-key": b"1"}
    assert await volumes.refresh(CONTEXT)
    assert (tmp_path / "v" / "api-key").read_bytes() == b"1"


def test_times_of_the_api() -> None:
    assert unix_time("1970-01-01T00:01:00Z") == 60.0
