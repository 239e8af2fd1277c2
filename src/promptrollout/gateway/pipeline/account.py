"""Last step of a request: count it, however it ended."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from promptrollout.gateway.http.errors import ClientGone
from promptrollout.gateway.http.exchange import Reply
from promptrollout.gateway.pipeline.request import Prepared
from promptrollout.llm.errors import CallerError


def account(prepared: Prepared, reply: Reply) -> None:
    """Count a request that is over."""
    prepared.accounted = True
    outcome = prepared.outcome
    outcome.over(max(0.0, time.perf_counter() - prepared.request.started - reply.blocked_seconds))
    if prepared.series is not None:
        prepared.series.count(outcome)


class AccountedOnExit:
    """Counts a request that was not counted yet: after an error of the gateway, or after its caller disconnected."""

    def __init__(self, prepared: Prepared, reply: Reply) -> None:
        self._prepared = prepared
        self._reply = reply

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        prepared = self._prepared
        if prepared.accounted:
            return
        if isinstance(error, Exception) and not isinstance(error, CallerError | ClientGone):
            # an error of ours that only one version triggers must not look like a version without requests
            prepared.outcome.error_type = prepared.outcome.error_type or "internal"
            account(prepared, self._reply)
        elif self._reply.gone:
            prepared.outcome.abandoned = True
            account(prepared, self._reply)


class InFlight:
    """While a request is in flight its series are not dropped, and its providers' connections are not closed."""

    def __init__(self, prepared: Prepared) -> None:
        self._series = prepared.series
        arm, stable = prepared.arm, prepared.rollout.stable
        # stable may answer in the canary's place
        self._targets = arm.targets if arm is stable else (*arm.targets, *stable.targets)

    def __enter__(self) -> None:
        for target in self._targets:
            target.provider.in_flight += 1
        if self._series is not None:
            self._series.in_flight += 1

    def __exit__(self, *exc_info: object) -> None:
        for target in self._targets:
            target.provider.in_flight -= 1
        if self._series is not None:
            self._series.in_flight -= 1
