"""Caller keys: their hashes in the files of a Secret, read again when they change."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MAX_FILES: Final = 10_000
MAX_FILE_BYTES: Final = 16 * 1024
MAX_HASHES: Final = 16
"""Per caller: the old and the new key during a rotation, and some more."""

_NAME: Final = re.compile(r"[-._a-zA-Z0-9]{1,253}")
_HASH: Final = re.compile(r"sha256:([0-9a-f]{64})")
_ROLLOUT: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_TENANT: Final = re.compile(r"[-._a-zA-Z0-9]{1,63}")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, and what it may use."""

    name: str
    """Empty: requests are not authenticated."""
    tenant: str | None = None
    rollouts: frozenset[str] | None = None
    """None: all rollouts of this gateway."""

    def may_use(self, rollout: str) -> bool:
        return self.rollouts is None or rollout in self.rollouts


ANONYMOUS: Final = Caller("")
CALLER: Final = ContextVar("caller", default=ANONYMOUS)
"""The caller of the present request. The registry checks it, so that no endpoint can forget to."""


class EntryError(ValueError):
    """A caller's file is not valid. Names the line and the right format, and never quotes the line: it may have a key
    instead of its hash."""


def parse_entry(name: str, text: str) -> tuple[Caller, list[bytes]]:
    """A caller and the hashes of its keys. Lines: `sha256:<64 hex digits>` for each key; `rollouts: a, b`; `tenant: t`;
    empty lines and those that begin with # are skipped. Raises EntryError."""
    if not _NAME.fullmatch(name):
        raise EntryError(f"{name[:64]!r} is not a valid name for a caller")
    hashes: list[bytes] = []
    rollouts: frozenset[str] | None = None
    tenant: str | None = None
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        field, _, value = line.partition(":")
        value = value.strip()
        if not line or line.startswith("#"):
            continue
        if match := _HASH.fullmatch(line):
            hashes.append(bytes.fromhex(match[1]))
        elif field == "rollouts":
            names = [part.strip() for part in value.split(",") if part.strip()]
            if not names or not all(map(_ROLLOUT.fullmatch, names)):
                raise EntryError(
                    f"{name}: line {number}: rollouts must be names of PromptRollouts, separated by commas"
                )
            rollouts = frozenset(names)
        elif field == "tenant" and _TENANT.fullmatch(value):
            tenant = value
        else:
            raise EntryError(
                f"{name}: line {number} must be sha256:<64 hexadecimal digits of the key's hash>, rollouts: <names> "
                "or tenant: <letters, digits, '-', '_', '.'>"
            )
    if len(hashes) > MAX_HASHES:
        raise EntryError(f"{name}: {len(hashes)} keys; a caller may have at most {MAX_HASHES}")
    return Caller(name, tenant, rollouts), hashes


def digest_of(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class CallerKeys:
    """Finds the caller of a key. Keys are never stored: only hashes are compared."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._states: dict[str, tuple[int, int, int]] = {}
        self._entries: dict[str, tuple[Caller, list[bytes]]] = {}
        self._by_hash: dict[bytes, tuple[bytes, Caller]] = {}
        self._seen: str | None = None
        """The target of `..data` when everything was read."""

    def __len__(self) -> int:
        return len(self._by_hash)

    def find(self, key: bytes) -> Caller | None:
        """The caller with this key. Its duration reveals nothing about the keys: the lookup is by hash, and the result
        is compared in constant time."""
        digest = digest_of(key)
        known, caller = self._by_hash.get(digest, (b"", None))
        return caller if hmac.compare_digest(known, digest) else None

    def refresh(self) -> list[str]:
        """Read changed files; in any thread, one at a time. The keys of a deleted file are removed; of an invalid file
        the last valid content stays. Returns the problems."""
        # the kubelet replaces all files of a Secret at once, by this link: no need to check thousands of files every
        # second
        content = _link(self._folder / "..data")
        if content is not None and content == self._seen:
            return []
        self._seen = None
        missed = False
        problems: list[str] = []
        states: dict[str, tuple[int, int, int]] = {}
        changed = False
        try:
            paths = sorted(path for path in self._folder.iterdir() if not path.name.startswith("."))
        except FileNotFoundError:
            paths = []
        except OSError as error:
            return [f"the folder of caller keys cannot be read: {error.strerror}"]
        if len(paths) > MAX_FILES:
            problems.append(f"{len(paths)} callers; only the first {MAX_FILES} are read")
        for path in paths[:MAX_FILES]:
            try:
                stat = path.stat()
                state = states[path.name] = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
                if self._states.get(path.name) == state:
                    continue
                changed = True
                if stat.st_size > MAX_FILE_BYTES:
                    raise EntryError(f"{path.name}: more than {MAX_FILE_BYTES} bytes")
                self._entries[path.name] = parse_entry(path.name, path.read_text())
            except FileNotFoundError:
                states.pop(path.name, None)  # replaced meanwhile: read the next time
                missed = True
            except OSError as error:
                # a problem of the pod, not of the file: read again, and the last content stays until then
                states[path.name] = (0, 0, 0)
                missed = True
                problems.append(f"{path.name}: cannot be read: {error.strerror}")
            except UnicodeDecodeError:
                problems.append(f"{path.name}: is not UTF-8 text")
            except EntryError as error:
                problems.append(str(error))
        gone = self._entries.keys() - states.keys()
        for name in gone:
            del self._entries[name]
        self._states = states
        self._seen = None if missed else content
        if changed or gone:
            self._by_hash = {digest: (digest, caller) for caller, hashes in self._entries.values() for digest in hashes}
        return problems


def _link(path: Path) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
