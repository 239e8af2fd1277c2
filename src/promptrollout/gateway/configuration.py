"""From a PromptDelivery's spec to something that serves: everything that can be wrong with it is found here."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from pydantic import ValidationError

from promptrollout.api.delivery import ArmConfig, DeliverySpec, ProviderConfig
from promptrollout.api.names import FORMAT_VERSION, short_digest
from promptrollout.api.networks import Networks
from promptrollout.gateway.account import Price
from promptrollout.gateway.errors import Untranslatable
from promptrollout.gateway.load_errors import KeyNotBound, LoadError, ProviderAddressRefused
from promptrollout.gateway.protocols import BY_NAME
from promptrollout.gateway.provider_files import ProviderFiles
from promptrollout.gateway.providers import KINDS
from promptrollout.gateway.providers.circuit import Circuit
from promptrollout.gateway.providers.endpoint import Endpoint
from promptrollout.gateway.render import CompiledPrompt, compile_prompt
from promptrollout.gateway.route import Routing
from promptrollout.gateway.spans import Busy, Spans

logger = logging.getLogger(__name__)

PROBE_SECONDS: Final = 3.0
_ROLLOUT_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Target:
    """A provider and model that answer for an arm."""

    model: str
    provider: Endpoint
    config: ProviderConfig
    price: Price | None
    circuit: Circuit


@dataclass(frozen=True, slots=True)
class Arm:
    """One version, ready to serve."""

    variant: Literal["stable", "canary"]
    version: str
    """The short digest."""
    digest: str
    prompt: CompiledPrompt
    targets: tuple[Target, ...]
    """In the order in which they are asked: the version's own, then its fallbacks."""

    @property
    def own(self) -> Target:
        return self.targets[0]

    @property
    def provider(self) -> Endpoint:
        return self.own.provider

    @property
    def provider_config(self) -> ProviderConfig:
        return self.own.config

    @property
    def price(self) -> Price | None:
        return self.own.price

    @property
    def circuit(self) -> Circuit:
        return self.own.circuit

    @property
    def model(self) -> str:
        return self.prompt.spec.model


@dataclass(frozen=True, slots=True)
class Configuration:
    """One rollout's delivery, compiled. Swapped in as a whole."""

    name: str
    raw: dict[str, Any]
    """The spec as it stands in the API server."""
    spec: DeliverySpec
    stable: Arm
    canary: Arm | None
    canary_problem: LoadError | None = None
    """Why the delivery's canary is missing here: stable serves alone, and the delivery is not acknowledged."""

    def routing(self, overridden: bool) -> Routing:
        loaded = self.canary is not None and not overridden
        spec = self.spec
        return Routing.of(
            spec.weight if loaded else 0, spec.salt, spec.stickiness, spec.audience, spec.testers, canary_loaded=loaded
        )


class Providers:
    """The endpoints in use, each with one pool of connections, and their files: keys, and certificates of CAs."""

    def __init__(self, keys_dir: Path, networks: Networks | None = None) -> None:
        """`networks`: where they may be."""
        self._keys_dir = keys_dir
        self._networks = networks or Networks()
        self._known: dict[tuple[str, str, str], Endpoint] = {}
        self._files: dict[tuple[str, str, str], ProviderFiles] = {}
        self._idle_since: dict[tuple[str, str, str], float] = {}
        self._circuits: WeakValueDictionary[tuple[str, ...], Circuit] = WeakValueDictionary()
        self._probe_due = 0.0

    def get(self, config: ProviderConfig) -> Endpoint:
        """The endpoint with its keys. Raises KeyMissing; KeyNotBound and ProviderAddressRefused only where it is not in
        use yet: what serves must be able to take a smaller weight over, and refuses each call itself."""
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
        """What an arm knows of a provider. It outlives changes of the configuration that keep the arm."""
        return self._circuits.setdefault((uid, digest, config.name, config.base_url, model), Circuit())

    def refresh_files(self) -> list[str]:
        """Read the keys and CAs whose files changed; one that vanished or broke stays. Returns what is wrong."""
        return [problem for files in self._files.values() for problem in files.refresh()]

    async def probe(self, targets: Iterable[Target], now: float) -> None:
        """Every few seconds, ask endpoints that could not be reached, or whose circuit is open: few requests are sent
        to them meanwhile, so hardly anything else would notice that they are back."""
        if now < self._probe_due:
            return
        waiting: dict[int, list[Target]] = {}
        for target in targets:
            if target.circuit.probed_for:
                waiting.setdefault(id(target.provider), []).append(target)
        if not waiting:
            return

        async def ask(those: list[Target]) -> None:
            answered = await those[0].provider.probe(those[0].config)
            for target in those:
                target.circuit.probed(answered)

        await asyncio.gather(*map(ask, waiting.values()))
        self._probe_due = now + PROBE_SECONDS

    def retries(self) -> dict[str, int]:
        """Further tries of calls so far, by the provider's name."""
        found: dict[str, int] = {}
        for provider in self._known.values():
            found[provider.name] = found.get(provider.name, 0) + provider.retries
        return found

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


class Loader:
    """Compiles deliveries off the request path; what did not change since the last one is taken over."""

    def __init__(self, providers: Providers, spans: Spans | None = None) -> None:
        self._providers = providers
        self._spans = spans or Spans()

    async def load(self, name: str, raw: dict[str, Any], previous: Configuration | None) -> Configuration:
        """The compiled configuration, without its canary if only that cannot be loaded: a canary takes nobody down.
        Raises LoadError naming the field and the fix."""
        if not _ROLLOUT_NAME.fullmatch(name):
            raise LoadError(f"{name!r} is no name of a rollout")
        if (version := raw.get("formatVersion", 1)) != FORMAT_VERSION:
            raise LoadError(
                f"formatVersion: this gateway reads {FORMAT_VERSION}, not {version}: use the operator's release"
            )
        known = [arm.prompt for arm in (previous.stable, previous.canary) if arm is not None] if previous else []
        spec, stable_prompt, canary_prompt = await asyncio.to_thread(_compile, raw, known, self._spans)
        stable = self._arm("stable", spec.rollout_uid, spec.stable, stable_prompt)
        canary, problem = None, None
        if isinstance(canary_prompt, LoadError):
            problem = canary_prompt
        elif spec.canary is not None and canary_prompt is not None:
            try:
                canary = self._arm("canary", spec.rollout_uid, spec.canary, canary_prompt)
            except LoadError as error:
                problem = error
        return Configuration(name, raw, spec, stable, canary, problem)

    def _arm(self, variant: Literal["stable", "canary"], uid: str, config: ArmConfig, prompt: CompiledPrompt) -> Arm:
        asked = [(config.prompt.model, config.provider), *((each.model, each.provider) for each in config.fallbacks)]
        for _, provider in asked:
            # what its provider's own protocol cannot say is found here, not by a request
            protocol = BY_NAME[next(iter(KINDS[provider.type].paths))]
            try:
                prompt.overlay(protocol.name, protocol.overlay)
            except Untranslatable as error:
                raise LoadError(f"{variant}.prompt.{error.param}: {error}") from error
        return Arm(
            variant=variant,
            version=short_digest(config.digest),
            digest=config.digest,
            prompt=prompt,
            targets=tuple(self._target(uid, config.digest, model, provider) for model, provider in asked),
        )

    def _target(self, uid: str, digest: str, model: str, config: ProviderConfig) -> Target:
        return Target(
            model=model,
            provider=self._providers.get(config),
            config=config,
            price=None if config.price is None else Price.of(config.price),
            circuit=self._providers.circuit(uid, digest, model, config),
        )


def _compile(
    raw: dict[str, Any], known: list[CompiledPrompt], spans: Spans
) -> tuple[DeliverySpec, CompiledPrompt, CompiledPrompt | LoadError | None]:
    """What is wrong with the canary alone comes back in its place."""
    spec, problem = _parse(raw)
    stable = _prompt("stable", spec.rollout_uid, spec.stable, known, spans)
    if problem is not None or spec.canary is None:
        return spec, stable, problem
    try:
        return spec, stable, _prompt("canary", spec.rollout_uid, spec.canary, [*known, stable], spans)
    except LoadError as error:
        return spec, stable, error
    except Exception as error:
        # a fault of ours that this canary brings to light is its problem, not stable's
        logger.exception("the canary cannot be compiled")
        return spec, stable, LoadError(f"canary.prompt: {type(error).__name__}: {error}")


def _parse(raw: dict[str, Any]) -> tuple[DeliverySpec, LoadError | None]:
    try:
        return DeliverySpec.model_validate(raw), None
    except ValidationError as error:
        found = error.errors()
        first = found[0]
        path = ".".join(str(part) for part in first["loc"])
        problem = LoadError(f"{path}: {first['msg']}")
        if any(one["loc"][:1] != ("canary",) for one in found):
            raise problem from error
    return DeliverySpec.model_validate({**raw, "canary": None}), problem


def _prompt(
    arm: Literal["stable", "canary"], uid: str, config: ArmConfig, known: list[CompiledPrompt], spans: Spans
) -> CompiledPrompt:
    for prompt in known:
        if prompt.spec == config.prompt:
            return prompt
    try:
        with Busy(spans, uid, config.digest, arm, loading=True):
            return compile_prompt(config.prompt)
    except ValueError as error:
        raise LoadError(f"{arm}.prompt.{error}") from error
