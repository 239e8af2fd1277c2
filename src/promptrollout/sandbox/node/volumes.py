"""Volumes as directories of the host, updated the way a kubelet does: all files of a volume change in one step."""

from __future__ import annotations

import base64
import os
import secrets
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from promptrollout.sandbox.node.podspec import Lookup, Object, field_value, resource_value

_DATA = "..data"
_DEFAULT_MODE = 0o644
_TOKEN_LIFE_SHARE = 0.8
_MINIMUM_TOKEN_SECONDS = 600

#: Requests a token: (audience or None, expiration in seconds) -> (token, expiry as Unix time).
TokenSource = Callable[[str | None, int], Awaitable[tuple[str, float]]]


class MountError(Exception):
    """A volume cannot be set up as things are (a kubelet's FailedMount)."""


@dataclass(frozen=True)
class File:
    content: bytes
    mode: int = _DEFAULT_MODE


def write_atomically(directory: Path, files: Mapping[str, File]) -> bool:
    """Make `directory` hold exactly `files`, readers seeing all old or all new ones; False if nothing changed.

    Kubernetes' layout: `name -> ..data/name` and `..data -> ..<random>`; one rename of `..data` switches.
    """
    directory.mkdir(parents=True, exist_ok=True)
    current = directory / _DATA
    if current.is_dir() and _content(current) == {name: file.content for name, file in files.items()}:
        return False
    previous = os.readlink(current) if current.is_symlink() else None
    fresh = f"..{secrets.token_hex(8)}"
    for name, file in files.items():
        path = directory / fresh / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
        path.chmod(file.mode)
    (directory / fresh).mkdir(exist_ok=True)
    switch = directory / "..data_tmp"
    switch.unlink(missing_ok=True)
    switch.symlink_to(fresh)
    os.replace(switch, current)
    tops = {Path(name).parts[0] for name in files}
    for top in tops:
        if not (directory / top).is_symlink():
            (directory / top).symlink_to(Path(_DATA) / top)
    for entry in directory.iterdir():
        if not entry.name.startswith("..") and entry.name not in tops:
            entry.unlink()
    if previous:
        shutil.rmtree(directory / previous, ignore_errors=True)
    return True


def _content(directory: Path) -> dict[str, bytes]:
    root = directory.resolve()
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def renew_at(issued: float, expires: float, max_age_seconds: float) -> float:
    """When a token is due for renewal: at 80 % of its life, as a kubelet does, or at the maximal age."""
    return min(issued + _TOKEN_LIFE_SHARE * (expires - issued), issued + max_age_seconds)


class PodVolumes:
    """The volumes of one pod."""

    def __init__(
        self,
        pod: Object,
        directory: Path,
        lookup: Lookup,
        tokens: TokenSource,
        clock: Callable[[], float],
        token_max_age_seconds: float,
    ) -> None:
        self._pod = pod
        self._lookup = lookup
        self._tokens = tokens
        self._clock = clock
        self._token_max_age_seconds = token_max_age_seconds
        self.paths = {volume["name"]: directory / volume["name"] for volume in pod["spec"].get("volumes") or []}
        # per (volume, path): the token and when to renew it
        self._issued: dict[tuple[str, str], tuple[bytes, float]] = {}

    @property
    def next_renewal(self) -> float | None:
        """Unix time of the next token renewal, if there are tokens."""
        return min((due for _, due in self._issued.values()), default=None)

    def sources(self) -> set[tuple[str, str]]:
        """(kind, name) of all ConfigMaps and Secrets that the volumes show."""
        found: set[tuple[str, str]] = set()
        for volume in self._pod["spec"].get("volumes") or []:
            parts = (volume.get("projected") or {}).get("sources") or []
            for part in (volume, *parts):
                if "configMap" in part:
                    found.add(("ConfigMap", part["configMap"]["name"]))
                if "secret" in part:
                    secret = part["secret"]
                    found.add(("Secret", secret.get("secretName") or secret.get("name")))
        return found

    async def refresh(self, context: Mapping[str, str]) -> bool:
        """Bring all volumes up to date; True if any file changed. Raises MountError."""
        changed = False
        for volume in self._pod["spec"].get("volumes") or []:
            path = self.paths[volume["name"]]
            if "emptyDir" in volume:
                path.mkdir(parents=True, exist_ok=True)
                continue
            changed |= write_atomically(path, await self._files(volume, context))
        return changed

    async def _files(self, volume: Object, context: Mapping[str, str]) -> dict[str, File]:
        if "configMap" in volume:
            return self._object_files("ConfigMap", volume["configMap"]["name"], volume["configMap"])
        if "secret" in volume:
            return self._object_files("Secret", volume["secret"]["secretName"], volume["secret"])
        if "downwardAPI" in volume:
            return self._downward_files(volume["downwardAPI"], context)
        if "projected" in volume:
            projected = volume["projected"]
            files: dict[str, File] = {}
            for source in projected.get("sources") or []:
                files |= await self._projected_files(volume["name"], source, projected, context)
            return files
        kinds = sorted(set(volume) - {"name"})
        raise MountError(f'volume "{volume["name"]}": the sandbox does not support {", ".join(kinds)}')

    async def _projected_files(
        self, volume: str, source: Object, projected: Object, context: Mapping[str, str]
    ) -> dict[str, File]:
        mode = projected.get("defaultMode", _DEFAULT_MODE)
        if "serviceAccountToken" in source:
            wanted = source["serviceAccountToken"]
            return {wanted["path"]: File(await self._token(volume, wanted), 0o600)}
        if "configMap" in source:
            return self._object_files("ConfigMap", source["configMap"]["name"], source["configMap"], mode)
        if "secret" in source:
            return self._object_files("Secret", source["secret"]["name"], source["secret"], mode)
        if "downwardAPI" in source:
            return self._downward_files({"defaultMode": mode, **source["downwardAPI"]}, context)
        raise MountError(f'volume "{volume}": the sandbox does not support projecting {", ".join(source)}')

    async def _token(self, volume: str, wanted: Object) -> bytes:
        key = (volume, wanted["path"])
        now = self._clock()
        held = self._issued.get(key)
        if held is not None and now < held[1]:
            return held[0]
        seconds = max(_MINIMUM_TOKEN_SECONDS, int(wanted.get("expirationSeconds") or 3600))
        token, expires = await self._tokens(wanted.get("audience") or None, seconds)
        self._issued[key] = (token.encode(), renew_at(now, expires, self._token_max_age_seconds))
        return token.encode()

    def _object_files(self, kind: str, name: str, source: Object, default_mode: int = _DEFAULT_MODE) -> dict[str, File]:
        mode = source.get("defaultMode", default_mode)
        found = self._lookup(kind, name)
        if found is None:
            if source.get("optional"):
                return {}
            raise MountError(f'{kind.lower()} "{name}" not found')
        if "items" not in source:
            return {key: File(content, mode) for key, content in found.items()}
        files = {}
        for item in source["items"]:
            if item["key"] in found:
                files[item["path"]] = File(found[item["key"]], item.get("mode", mode))
            elif not source.get("optional"):
                raise MountError(f"{kind.lower()} references non-existent key: {item['key']} (in {name})")
        return files

    def _downward_files(self, source: Object, context: Mapping[str, str]) -> dict[str, File]:
        mode = source.get("defaultMode", _DEFAULT_MODE)
        files = {}
        for item in source.get("items") or []:
            if "fieldRef" in item:
                text = field_value(self._pod, item["fieldRef"]["fieldPath"], context)
            else:
                text = resource_value(self._pod, {}, item["resourceFieldRef"])
            files[item["path"]] = File(text.encode(), item.get("mode", mode))
        return files

    def update(self, pod: Object) -> None:
        """Labels and annotations can change under a running pod."""
        self._pod = pod


def unix_time(text: str) -> float:
    """Seconds since 1970 of an RFC 3339 time."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def decoded(kind: str, item: dict[str, Any]) -> dict[str, bytes]:
    """The data of a ConfigMap or Secret as bytes."""
    if kind == "Secret":
        return {key: base64.b64decode(value) for key, value in (item.get("data") or {}).items()}
    texts = {key: value.encode() for key, value in (item.get("data") or {}).items()}
    binary = {key: base64.b64decode(value) for key, value in (item.get("binaryData") or {}).items()}
    return texts | binary
