"""Simulations and forecasts on a terminal and in a pipe: nothing is wider than 80 columns."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from promptrollout.api.rollout import ObjectiveStatus, Snapshot
from promptrollout.api.slo import Objective
from promptrollout.engine.objectives import wording
from promptrollout.engine.objectives.definitions import margins_text
from promptrollout.engine.objectives.signals import signal_of
from promptrollout.simulation.assumed import Assumed, described
from promptrollout.simulation.forecast import Forecast
from promptrollout.simulation.power import CHANCE
from promptrollout.simulation.summary import OUTCOMES, Spread, Summary
from promptrollout.simulation.toll import Toll
from promptrollout.simulation.world import Run

ENDED = {"Promoted": "promoted", "RolledBack": "rolled back", "Held": "held"}
VERDICTS = {"Pass": "pass", "Breach": "BREACH", "NoEvidence": "no evidence"}


def duration(seconds: float) -> str:
    """`0:45:00`, `1 d 2:00:00`; `never` for infinity."""
    if math.isinf(seconds):
        return "never"
    whole = round(abs(seconds))
    days, rest = divmod(whole, 86_400)
    text = f"{rest // 3600}:{rest // 60 % 60:02}:{rest % 60:02}"
    return ("-" if seconds < 0 else "") + (f"{days} d " if days else "") + text


# ---------------------------------------------------------------- simulate


def run_view(name: str, run: Run, rules: Snapshot, warnings: Iterable[str] = ()) -> RenderableType:
    """The timeline of one run, the evidence at its end, and what it cost."""
    headline = {
        "Promoted": f"{name} would be promoted after {duration(run.seconds)}",
        "RolledBack": f"{name} would be rolled back after {duration(run.seconds)}",
        "Held": f"{name} would still be held after {duration(run.seconds)}: {run.why}",
    }[run.outcome]
    timeline = _table(("time", False), ("weight", False), ("decision", False), ("why", True))
    for moment in run.timeline:
        row = (duration(moment.seconds), f"{moment.weight} %", moment.reason, moment.message)
        timeline.add_row(*map(escape, row), style="bold" if moment.warning else "")
    parts: list[RenderableType] = [Text(headline), Text(), timeline]
    if run.rows:
        parts += [Text(), evidence_table(run.rows)]
    parts += _margins(rules)
    if run.tolls:
        parts += [Text(), toll_table(run.tolls.items(), rules)]
    return Group(*parts, *_warned(warnings))


def evidence_table(rows: Iterable[ObjectiveStatus]) -> Table:
    table = _table(
        ("objective", False),
        ("canary", False),
        ("stable", False),
        ("samples", False),
        ("difference", True),
        ("verdict", False),
    )
    for row in rows:
        samples = f"{row.canary_samples:,} / {row.stable_samples:,}"
        cells = (row.name, row.canary, row.stable, samples, row.difference or "-", VERDICTS[row.verdict])
        table.add_row(*map(escape, cells))
    return table


def toll_table(tolls: Iterable[tuple[str, Toll]], rules: Snapshot) -> Table:
    table = _table(("canary met", False), ("samples", False), ("bad, or sum", False), ("more than on stable", False))
    for name, toll in tolls:
        table.add_row(
            escape(name),
            wording.count(toll.requests),
            _amount(name, rules, toll.total),
            _amount(name, rules, toll.excess),
        )
    return table


def summary_view(name: str, found: Summary, rules: Snapshot, warnings: Iterable[str] = ()) -> RenderableType:
    """Many runs."""
    table = _table(
        (f"{found.runs:,} runs", False), ("chance (95 %)", False), ("time (90 %)", False), ("requests (90 %)", False)
    )
    for outcome in OUTCOMES:
        chance = found.chances[outcome]
        text = f"{_percent(chance.share)} ({_percent(chance.low)} to {_percent(chance.high)})"
        table.add_row(
            ENDED[outcome],
            text,
            _pair(found.seconds[outcome], duration),
            _pair(found.canary_requests[outcome], wording.count),
        )
    tolls = _table(("canary met", False), ("bad, or sum (90 %)", False), ("more than on stable (90 %)", False))
    for objective, toll in found.tolls.items():
        tolls.add_row(
            escape(objective),
            _pair(toll.total, partial(_amount, objective, rules)),
            _pair(toll.excess, partial(_amount, objective, rules)),
        )
    note = "Median, and in brackets the 90th percentile over the runs. Requests are the canary's."
    parts: list[RenderableType] = [Text(name), Text(), table, Text(), tolls, *_margins(rules), Text(), Text(note)]
    if found.reasons:
        why = ", ".join(f"{cause} {count:,}" for cause, count in found.reasons.items())
        parts.append(Text(f"Rolled back by: {why}."))
    return Group(*parts, *_warned(warnings))


# ---------------------------------------------------------------- plan


def forecast_view(name: str, rules: Snapshot, given: Assumed, found: Forecast) -> RenderableType:
    parts: list[RenderableType] = [Text(f"{name} at {given.requests_per_minute:,.4g} requests a minute"), Text()]
    assumptions = _table(("assumed on stable", False), ("", True))
    for objective in rules.objectives:
        assumptions.add_row(escape(objective.name), described(objective, given.baselines[objective.name]))
    steps = _table(
        ("step", False),
        ("weight", False),
        ("time", False),
        ("canary / stable", False),
        ("objective", False),
        ("catches", True),
    )
    for each in (*found.steps, *([found.bake] if found.bake else ())):
        head = [
            "bake" if each is found.bake else str(each.step.number),
            f"{each.step.weight} %",
            duration(each.step.seconds),
            f"{wording.count(each.canary_requests)} / {wording.count(each.stable_requests)}",
        ]
        if not rules.objectives:
            steps.add_row(*head, "-", "nothing: mode None")
        for objective in rules.objectives:
            value = each.catches[objective.name]
            steps.add_row(*head, escape(objective.name), _catches(objective, given, value))
            head = [""] * 4
    parts += [assumptions, *_margins(rules), Text(), steps, Text()]
    parts.append(
        Text(
            "Catches: the smallest value of a canary, bad from its first user on, that is rolled back by the end of "
            f"the step with {100 * CHANCE:.0f} % chance. Requests are assumed to be independent."
        )
    )
    parts.append(Text(bake_text(rules, found)))
    parts += [Text(), Text(good_text(rules, found)), *_warned(map(str, found.doubts))]
    return Group(*parts)


def _catches(objective: Objective, given: Assumed, value: float | None) -> str:
    if value is None:
        return "nothing"
    base = given.baselines[objective.name].value
    return f"{wording.value(signal_of(objective), value)} (x {value / base if value >= base else base / value:.3g})"


def bake_text(rules: Snapshot, found: Forecast) -> str:
    if found.bake is not None:
        return (
            f"Bake: the same for a version that becomes bad when it is promoted, compared with the "
            f"{100 - found.bake.step.weight} % of the users who are held back (holdbackPercent)."
        )
    if not rules.analyse or not rules.bake_seconds:
        return "Without analysis, or without a bake, nothing watches the version once it is promoted."
    return "Nobody is held back, so that the bake sees only absolute bounds (max, min); set holdbackPercent."


def good_text(rules: Snapshot, found: Forecast) -> str:
    if math.isinf(found.good_seconds):
        limit = duration(rules.max_duration_seconds)
        text = f"A version as good as stable is not promoted within maxDurationSeconds ({limit}): {found.good_why}."
    else:
        text = (
            f"A version as good as stable is promoted after {duration(found.good_seconds)} (median); "
            f"its steps need at least {duration(found.planned_seconds)}."
        )
    if found.person_pauses:
        text += f" Pauses for a person ({found.person_pauses}) are not counted."
    if (sticky := found.sticky) is not None:
        text += (
            f" With {sticky.users:,} users who stay on their version, {sticky.promoted} of {sticky.versions} such "
            "versions get there before onInsufficientTraffic applies."
        )
    return text


# ---------------------------------------------------------------- pieces


def _amount(name: str, rules: Snapshot, value: float) -> str:
    signal = next((signal_of(o) for o in rules.objectives if o.name == name), None)
    if signal is not None and signal.kind == "mean":
        return wording.value(signal, value) if signal.unit == "usd" else f"{value:,.4g}"
    return f"{value:,.0f}" if abs(value) >= 10 or value == int(value) else f"{value:.1f}"


def _margins(rules: Snapshot) -> list[RenderableType]:
    """What promotes and what rolls back, by objective that is compared with stable."""
    table = _table(("versus stable", False), ("", True))
    for objective in rules.objectives:
        if text := margins_text(objective):
            table.add_row(escape(objective.name), text)
    return [Text(), table] if table.row_count else []


def _pair(spread: Spread | None, write: Callable[[float], str]) -> str:
    if spread is None:
        return "-"
    return f"{write(spread.median)} ({write(spread.p90)})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if 0 < share < 1 else f"{100 * share:.0f} %"


def _warned(warnings: Iterable[str]) -> Sequence[RenderableType]:
    texts = [Text(f"warning: {warning}") for warning in warnings]
    return [Text(), *texts] if texts else []


def _table(*columns: tuple[str, bool]) -> Table:
    """Name, and whether it may be folded."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name, folds in columns:
        table.add_column(name, no_wrap=not folds, overflow="fold")
    return table
