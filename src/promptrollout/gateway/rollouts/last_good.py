"""The last good configuration on disk: a pod that restarts while the API server is down serves from it."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import orjson

logger = logging.getLogger(__name__)

_SUFFIX: Final = ".json"


class Store:
    """One file per rollout, and one for the emergency overrides. Failures are counted and logged, never raised.

    Each file is `<sha256 of the rest>\\n<JSON>`, written to a temporary file and renamed: a damaged file is ignored.
    """

    def __init__(self, folder: Path, on_error: Callable[[str], None]) -> None:
        self._deliveries = folder / "deliveries"
        self._overrides = folder / "overrides"
        self._signing_keys = folder / "signing-keys"
        self._on_error = on_error

    def save(self, name: str, spec: dict[str, Any]) -> None:
        """Save the spec of a delivery that was put in service."""
        self._write(self._deliveries / f"{name}{_SUFFIX}", spec)

    def save_signing_key(self, name: str, spec: dict[str, Any]) -> None:
        """Save the keys of a rollout's response ids."""
        self._write(self._signing_keys / f"{name}{_SUFFIX}", spec)

    def forget(self, name: str) -> None:
        for folder in (self._deliveries, self._signing_keys):
            try:
                (folder / f"{name}{_SUFFIX}").unlink(missing_ok=True)
            except OSError as error:
                self._failed("delete", f"{name} cannot be deleted: {error}")

    def load(self) -> dict[str, dict[str, Any]]:
        """All undamaged deliveries, by the rollout's name."""
        return self._load(self._deliveries)

    def load_signing_keys(self) -> dict[str, dict[str, Any]]:
        """All undamaged keys of response ids, by the rollout's name."""
        return self._load(self._signing_keys)

    def _load(self, folder: Path) -> dict[str, dict[str, Any]]:
        contents: dict[str, dict[str, Any]] = {}
        try:
            files = sorted(folder.glob(f"*{_SUFFIX}"))
        except OSError as error:
            self._failed("read", f"{folder} cannot be read: {error}")
            return contents
        for path in files:
            content = self._read(path)
            if isinstance(content, dict):
                contents[path.name.removesuffix(_SUFFIX)] = content
        return contents

    def save_overrides(self, rollouts: set[str]) -> None:
        self._write(self._overrides, sorted(rollouts))

    def load_overrides(self) -> set[str]:
        content = self._read(self._overrides)
        return {name for name in content if isinstance(name, str)} if isinstance(content, list) else set()

    def _write(self, path: Path, content: Any) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            payload = orjson.dumps(content)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)
            temporary.replace(path)
        except (
            OSError,
            orjson.JSONEncodeError,
        ) as error:  # a field of a later release may have a value that JSON cannot express
            self._failed("write", f"{path} cannot be written: {error}")

    def _read(self, path: Path) -> Any:
        try:
            checksum, _, payload = path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            self._failed("read", f"{path} cannot be read: {error}")
            return None
        if hashlib.sha256(payload).hexdigest().encode() != checksum:
            self._failed("checksum", f"{path} is damaged (wrong checksum): ignored")
            return None
        return orjson.loads(payload)

    def _failed(self, operation: str, message: str) -> None:
        logger.error("last good configuration: %s", message)
        self._on_error(operation)
