"""Compile a PromptDelivery's spec into what serves requests. Whatever is wrong with it is detected here."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any, Final, Literal

from pydantic import ValidationError

from promptrollout.api.delivery import ArmConfig, DeliverySpec, ProviderConfig
from promptrollout.api.names import FORMAT_VERSION, short_digest
from promptrollout.gateway.metrics.in_flight import InFlightFile, InFlightMark
from promptrollout.gateway.rollouts.configuration import Arm, Configuration, Target
from promptrollout.gateway.rollouts.load_errors import LoadError
from promptrollout.gateway.rollouts.provider_pool import ProviderPool
from promptrollout.llm.answers.usage import Price
from promptrollout.llm.errors import Untranslatable
from promptrollout.llm.prompts.prompt import CompiledPrompt, compile_prompt
from promptrollout.llm.protocols import BY_NAME
from promptrollout.llm.providers import KINDS

logger = logging.getLogger(__name__)

_ROLLOUT_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


class Loader:
    """Compiles deliveries off the request path; reuses what did not change since the last one."""

    def __init__(self, providers: ProviderPool, in_flight_file: InFlightFile | None = None) -> None:
        self._providers = providers
        self._in_flight_file = in_flight_file or InFlightFile()

    async def load(self, name: str, raw: dict[str, Any], previous: Configuration | None) -> Configuration:
        """The compiled configuration; without its canary if only that cannot be loaded, so that stable still serves.
        Raises LoadError, which names the field and the fix."""
        if not _ROLLOUT_NAME.fullmatch(name):
            raise LoadError(f"{name!r} is not a valid name of a rollout")
        if (version := raw.get("formatVersion", 1)) != FORMAT_VERSION:
            raise LoadError(
                f"formatVersion: this gateway reads {FORMAT_VERSION}, not {version}: use the gateway image of the "
                "operator's release"
            )
        known = [arm.prompt for arm in (previous.stable, previous.canary) if arm is not None] if previous else []
        spec, stable_prompt, canary_prompt = await asyncio.to_thread(_compile, raw, known, self._in_flight_file)
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
        targets = [(config.prompt.model, config.provider), *((each.model, each.provider) for each in config.fallbacks)]
        for _, provider in targets:
            # what the provider's own protocol does not support is detected here, not by a request
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
            targets=tuple(self._target(uid, config.digest, model, provider) for model, provider in targets),
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
    raw: dict[str, Any], known: list[CompiledPrompt], in_flight_file: InFlightFile
) -> tuple[DeliverySpec, CompiledPrompt, CompiledPrompt | LoadError | None]:
    """The spec and both prompts; in the canary's place the error, if only the canary has one."""
    spec, problem = _parse(raw)
    stable = _prompt("stable", spec.rollout_uid, spec.stable, known, in_flight_file)
    if problem is not None or spec.canary is None:
        return spec, stable, problem
    try:
        return spec, stable, _prompt("canary", spec.rollout_uid, spec.canary, [*known, stable], in_flight_file)
    except LoadError as error:
        return spec, stable, error
    except Exception as error:
        # an error of ours that this canary triggers is its problem, not stable's
        logger.exception("compiling the canary failed")
        return spec, stable, LoadError(f"canary.prompt: {type(error).__name__}: {error}")


def _parse(raw: dict[str, Any]) -> tuple[DeliverySpec, LoadError | None]:
    try:
        return DeliverySpec.model_validate(raw), None
    except ValidationError as error:
        errors = error.errors()
        first = errors[0]
        path = ".".join(str(part) for part in first["loc"])
        problem = LoadError(f"{path}: {first['msg']}")
        if any(one["loc"][:1] != ("canary",) for one in errors):
            raise problem from error
    return DeliverySpec.model_validate({**raw, "canary": None}), problem


def _prompt(
    arm: Literal["stable", "canary"],
    uid: str,
    config: ArmConfig,
    known: list[CompiledPrompt],
    in_flight_file: InFlightFile,
) -> CompiledPrompt:
    for prompt in known:
        if prompt.spec == config.prompt:
            return prompt
    try:
        with InFlightMark(in_flight_file, uid, config.digest, arm, loading=True):
            return compile_prompt(config.prompt)
    except ValueError as error:
        raise LoadError(f"{arm}.prompt.{error}") from error
