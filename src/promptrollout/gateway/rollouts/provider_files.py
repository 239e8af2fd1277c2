"""The files of an endpoint: its keys, the hosts that may get them, and its CA; of the objects that a delivery names."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

from promptrollout.api.delivery import ProviderConfig
from promptrollout.api.pod_settings import CA_FILE, HOSTS_FILE, KEY_FILE
from promptrollout.gateway.rollouts.load_errors import KeyMissing
from promptrollout.llm.providers.endpoint import Endpoint
from promptrollout.llm.providers.key_hosts import KeyHosts, parse_hosts
from promptrollout.llm.providers.keys import parse_keys


class ProviderFiles:
    """Reads from the folder of the reference that the delivery names. A ModelProvider that had the same name before has
    another folder: its key must not be sent to the URL of this one.

    An endpoint keeps its keys and its CA until those of a new reference are mounted. They are sent to the same hosts as
    before, and a rollback does not wait for pods that have the new ones.
    """

    def __init__(self, keys_dir: Path, provider: Endpoint) -> None:
        self._folder = keys_dir / provider.name
        self._provider = provider
        self._keys_wanted = self._keys_read = self._folder
        self._ca_wanted = self._ca_read = self._folder
        self._states: dict[Path, tuple[int, int] | None] = {}

    def configure(self, config: ProviderConfig) -> None:
        """Set the endpoint's keys and its CA. Raises KeyMissing if it has none yet."""
        if not config.needs_key:
            self._provider.keys.replace(())
        else:
            self._keys_wanted = self._folder_of(config.key_source)
            self._read_if_needed(self._has_keys, self._keys_wanted != self._keys_read, self._read_keys_and_hosts)
        if config.tls.insecure_skip_verify or not config.tls.has_ca:
            self._provider.trust = not config.tls.insecure_skip_verify
        else:
            self._ca_wanted = self._folder_of(config.tls.ca_source)
            self._read_if_needed(self._has_ca, self._ca_wanted != self._ca_read, self._read_ca)

    def refresh(self) -> list[str]:
        """Read files that are new or changed. If one is gone or not valid, the last content stays. Returns the
        problems."""
        problems: list[str] = []
        keys, ca = (self._keys_wanted / KEY_FILE, self._keys_wanted / HOSTS_FILE), self._ca_wanted / CA_FILE
        try:
            if self._has_keys and any(self._changed(path) for path in keys):
                self._read_keys_and_hosts()
            if self._has_ca and self._changed(ca):
                self._read_ca()
        except KeyMissing as error:
            problems.append(str(error))
        return problems

    @property
    def _has_keys(self) -> bool:
        return len(self._provider.keys) > 0

    @property
    def _has_ca(self) -> bool:
        return isinstance(self._provider.trust, ssl.SSLContext)

    def _folder_of(self, source: str | None) -> Path:
        """`source` is None with an operator of an earlier release, which mounts by the provider's name alone."""
        return self._folder if source is None else self._folder / source

    def _read_if_needed(self, has: bool, other: bool, read: Callable[[], None]) -> None:
        if has and not other:
            return
        try:
            read()
        except KeyMissing:
            if not has:
                raise

    def _read_keys_and_hosts(self) -> None:
        """Read both from one state of the Secret. Raises KeyMissing."""
        folder = self._keys_wanted
        path = folder / HOSTS_FILE
        while True:
            state = _state(path)
            hosts, keys = _read_hosts(path), self._read_keys(folder / KEY_FILE)
            if _state(path) == state:
                break
        self._states[path] = state
        self._provider.keys.replace(keys)
        self._provider.key_hosts = hosts
        self._keys_read = folder

    def _read_keys(self, path: Path) -> list[str]:
        content = self._read(path, "key", "apiKeySecretRef")
        try:
            return parse_keys(content)
        except ValueError as error:
            raise KeyMissing(f"ModelProvider {self._provider.name}: {path} {error}") from None

    def _read_ca(self) -> None:
        path = self._ca_wanted / CA_FILE
        content = self._read(path, "CA", "tls.caConfigMapRef or tls.caSecretRef")
        try:
            self._provider.trust = ssl.create_default_context(cadata=content)
        except (ssl.SSLError, ValueError) as error:
            message = f"ModelProvider {self._provider.name}: {path} has no PEM certificate for the CA: {error}"
            raise KeyMissing(message) from error
        self._ca_read = self._ca_wanted

    def _read(self, path: Path, what: str, field: str) -> str:
        name, state = self._provider.name, _state(path)
        try:
            content = path.read_text()
        except FileNotFoundError as error:
            message = f"ModelProvider {name}: its {what} is missing: create the object and key that {field} names"
            raise KeyMissing(message) from error
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            message = f"ModelProvider {name}: its {what} cannot be read from {path}: {why}"
            raise KeyMissing(message) from None  # the cause may quote the content
        if state is not None:
            self._states[path] = state
        return content

    def _changed(self, path: Path) -> bool:
        return _state(path) != self._states.get(path)


def _read_hosts(path: Path) -> KeyHosts | None:
    """None: the Secret has no `hosts`. If they cannot be read, no host is allowed."""
    try:
        return parse_hosts(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return KeyHosts((), f"cannot be read: {error.strerror if isinstance(error, OSError) else error}")


def _state(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino
