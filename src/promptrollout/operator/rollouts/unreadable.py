"""A spec that this release cannot read: report it, and keep what is served."""

from __future__ import annotations

from pydantic import ValidationError

from promptrollout.api.delivery import DeliverySpec
from promptrollout.api.invalid import first_problem
from promptrollout.api.meta import LocalRef
from promptrollout.api.rollout import Analysis, RolloutSpec
from promptrollout.api.strategy import Canary, Step, Strategy

_STEPS = [Step(weight=100)]


def unreadable(error: ValidationError) -> str:
    """Path, reason and fix."""
    return f"spec.{first_problem(error)}: this release cannot read it; install the CRDs of the operator's release"


def spec_of(delivery: DeliverySpec | None) -> RolloutSpec:
    """Replaces a spec that was never read: it asks for no version, and keeps what is served now.

    A canary that is in progress goes by its snapshot, so a breach still rolls back.
    """
    if delivery is None:
        return RolloutSpec(gateway_ref=LocalRef(name="unknown"), strategy=_strategy(None), analysis=_NO_ANALYSIS)
    return RolloutSpec(
        gateway_ref=LocalRef(name=delivery.gateway),
        stickiness=delivery.stickiness,
        evidence_source="Gateway" if delivery.reporting is None else "Reported",
        reporting=delivery.reporting,
        strategy=_strategy(delivery),
        analysis=_NO_ANALYSIS,
    )


def _strategy(delivery: DeliverySpec | None) -> Strategy:
    if delivery is None:
        return Strategy(canary=Canary(steps=_STEPS))
    return Strategy(canary=Canary(steps=_STEPS, audience=delivery.audience, testers=delivery.testers))


_NO_ANALYSIS = Analysis(mode="None")
