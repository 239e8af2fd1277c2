"""Historical metrics of a rollout, read from Prometheus by the operator's own reader."""

from __future__ import annotations

import asyncio

from promptrollout.api.rollout import Snapshot
from promptrollout.engine.lifecycle.moves import BASELINE_INTERVALS
from promptrollout.operator.cluster.metrics import Metrics
from promptrollout.operator.cluster.queue import Key
from promptrollout.operator.evidence.analyses import Analyses
from promptrollout.operator.evidence.requests import EvidenceRequest, ObjectiveQueries
from promptrollout.operator.sources.lanes import SourceError
from promptrollout.operator.sources.prometheus import Source
from promptrollout.simulation.recorded import RecordedInterval, line_of

SOURCE = "history"
TIMEOUT_SECONDS = 60
"""Longer windows than the operator ever asks for at once."""


def evidence_request(
    rules: Snapshot, uid: str, stable: str, canary: str, exposed_at: int, name: str, namespace: str
) -> EvidenceRequest:
    """`uid`: of the PromptRollout; `stable` and `canary`: the label `version`, ten characters of a digest."""
    return EvidenceRequest(
        uid=uid,
        source=SOURCE,
        interval_seconds=rules.interval_seconds,
        stable_version=stable,
        canary_version=canary,
        objectives=tuple(ObjectiveQueries.of(objective) for objective in rules.objectives),
        exposed_at=exposed_at,
        rollout=name,
        namespace=namespace,
    )


def history(
    url: str, name: str, rules: Snapshot, uid: str, stable: str, canary: str, start: int, end: int, namespace: str
) -> list[RecordedInterval]:
    """The intervals in [start, end), and the baseline before them. Seconds since the epoch.

    `namespace`: what the label `namespace` of the series says; empty: they carry none. ValueError if the source does
    not answer. The weight of that time is not in its metrics.
    """
    source = Source(SOURCE, url, Metrics(), timeout=TIMEOUT_SECONDS, namespace_label="namespace" if namespace else "")
    try:
        request = evidence_request(rules, uid, stable, canary, start, name, namespace)
        return asyncio.run(_read(source, request, start, end))
    except SourceError as error:
        raise ValueError(str(error)) from error
    finally:
        source.close()


async def _read(source: Source, request: EvidenceRequest, start: int, end: int) -> list[RecordedInterval]:
    await source.read_clock()  # raises, where `Analyses` would log the problem as well
    width = request.interval_seconds
    position = start // width * width - BASELINE_INTERVALS * width
    last = end // width * width
    analyses = Analyses({SOURCE: source}, settle_seconds=0.0, changed=lambda _: None)
    key = Key("PromptRollout", request.namespace, request.rollout)
    lines: list[RecordedInterval] = []
    while position < last:
        analyses.request(key, request, position)
        await analyses.look()
        evidence = analyses.evidence(key, position, SOURCE)
        if not evidence.available:
            raise SourceError(evidence.problem)
        if not evidence.intervals:
            break  # the rest has not happened yet
        lines += [line_of(interval, None) for interval in evidence.intervals if interval.start < last]
        position = evidence.intervals[-1].end
    return lines
