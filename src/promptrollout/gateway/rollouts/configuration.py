"""One rollout's delivery, compiled: its arms, and the provider and model behind each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from promptrollout.api.delivery import DeliverySpec, ProviderConfig
from promptrollout.gateway.assignment.assign import Routing
from promptrollout.gateway.rollouts.load_errors import LoadError
from promptrollout.llm.answers.usage import Price
from promptrollout.llm.prompts.prompt import CompiledPrompt
from promptrollout.llm.providers.circuit import Circuit
from promptrollout.llm.providers.endpoint import Endpoint


@dataclass(frozen=True, slots=True)
class Target:
    """A provider and model that can answer for an arm."""

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
    """The version's own first, then its fallbacks in their order."""

    @property
    def own(self) -> Target:
        return self.targets[0]

    @property
    def provider(self) -> Endpoint:
        return self.own.provider

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
    """One rollout's delivery, compiled. Only whole configurations are put in service."""

    name: str
    raw: dict[str, Any]
    """The spec as the API server has it."""
    spec: DeliverySpec
    stable: Arm
    canary: Arm | None
    canary_problem: LoadError | None = None
    """Why the canary could not be loaded: stable serves alone, and the delivery is not acknowledged."""

    def routing(self, overridden: bool) -> Routing:
        loaded = self.canary is not None and not overridden
        spec = self.spec
        return Routing.of(
            spec.weight if loaded else 0, spec.salt, spec.stickiness, spec.audience, spec.testers, canary_loaded=loaded
        )
