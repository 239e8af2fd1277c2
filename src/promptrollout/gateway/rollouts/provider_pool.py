"""The providers in use, each with one pool of connections, and their keys and certificates."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from promptrollout.api.delivery import ProviderConfig
from promptrollout.api.networks import Networks
from promptrollout.gateway.rollouts.configuration import Target
from promptrollout.gateway.rollouts.load_errors import KeyNotBound, ProviderAddressRefused
from promptrollout.gateway.rollouts.provider_files import ProviderFiles
from promptrollout.llm.providers import KINDS
from promptrollout.llm.providers.circuit import Circuit
from promptrollout.llm.providers.endpoint import Endpoint

PROBE_SECONDS: Final = 3.0


class ProviderPool:
    """The endpoints in use, each with one pool of connections, and their files: keys, and certificates of CAs."""

    def __init__(self, keys_dir: Path, networks: Networks | None = None) -> None:
        """`networks`: the addresses that they may have."""
        self._keys_dir = keys_dir
        self._networks = networks or Networks()
        self._known: dict[tuple[str, str, str], Endpoint] = {}
        self._files: dict[tuple[str, str, str], ProviderFiles] = {}
        self._idle_since: dict[tuple[str, str, str], float] = {}
        self._circuits: WeakValueDictionary[tuple[str, ...], Circuit] = WeakValueDictionary()
        self._probe_due = 0.0

    def get(self, config: ProviderConfig) -> Endpoint:
        """The endpoint with its keys. Raises KeyMissing; KeyNotBound and ProviderAddressRefused only if it is not in
        use yet: a rollout in service must be able to lower its weight, and its endpoint refuses each call itself."""
        key = (config.name, config.type, config.base_url)
        provider, known = self._known.get(key), True
        if provider is None:
            provider, known = KINDS[config.type](config.name, config.base_url, networks=self._networks), False
        if not known and (why := provider.literal_refusal) is not None:
            raise ProviderAddressRefused(config.name, why)
        files = self._files[key] if known else ProviderFiles(self._keys_dir, provider)
        files.configure(config)
        if not known and provider.key_not_bound and (hosts := provider.key_hosts) is not None:
            raise KeyNotBound(config.name, urlsplit(config.base_url).netloc, hosts.problem)
        provider.configure(config)
        self._known[key], self._files[key] = provider, files
        return provider

    def circuit(self, uid: str, digest: str, model: str, config: ProviderConfig) -> Circuit:
        """What an arm knows about a provider. It stays the same object as long as the arm does."""
        return self._circuits.setdefault((uid, digest, config.name, config.base_url, model), Circuit())

    def refresh_files(self) -> list[str]:
        """Read the keys and CAs whose files changed. Returns the problems; the last valid content stays in use."""
        return [problem for files in self._files.values() for problem in files.refresh()]

    async def probe(self, targets: Iterable[Target], now: float) -> None:
        """Every few seconds, probe endpoints that are unreachable or whose circuit is open: they get few requests, so
        little else would show that they are back."""
        if now < self._probe_due:
            return
        waiting: dict[int, list[Target]] = {}
        for target in targets:
            if target.circuit.needs_probe:
                waiting.setdefault(id(target.provider), []).append(target)
        if not waiting:
            return

        async def probe(same_provider: list[Target]) -> None:
            answered = await same_provider[0].provider.probe(same_provider[0].config)
            for target in same_provider:
                target.circuit.record_probe(answered)

        await asyncio.gather(*map(probe, waiting.values()))
        self._probe_due = now + PROBE_SECONDS

    def retries(self) -> dict[str, int]:
        """Retries of calls so far, by the provider's name."""
        retries: dict[str, int] = {}
        for provider in self._known.values():
            retries[provider.name] = retries.get(provider.name, 0) + provider.retries
        return retries

    async def close_unused(self, used: set[int], now: float, after_seconds: float = 600.0) -> None:
        """Close the connections of endpoints (by `id`) that no configuration has used for a while."""
        for key, provider in list(self._known.items()):
            if id(provider) in used or provider.in_flight:
                self._idle_since.pop(key, None)
            elif now - self._idle_since.setdefault(key, now) > after_seconds:
                del self._known[key], self._files[key], self._idle_since[key]
                await provider.close()

    async def close(self) -> None:
        for provider in self._known.values():
            await provider.close()
