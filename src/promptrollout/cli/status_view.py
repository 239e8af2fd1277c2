"""How `promptrollout status` looks: the tree of one rollout, with its evidence and its last decisions."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from promptrollout.api.names import short_digest
from promptrollout.api.rollout import Decision, ObjectiveStatus, PromptRollout, RolloutStatus

# as in `kubectl argo rollouts get`
ICONS: Final = {
    "Healthy": ("✔", "green"),
    "Progressing": ("◌", "cyan"),
    "Paused": ("॥", "yellow"),
    "Degraded": ("✖", "red"),
}
VERDICTS: Final = {"Pass": ("✔", "green"), "Breach": ("✖", "red"), "NoEvidence": ("◌", "yellow")}
DECISIONS_SHOWN: Final = 5


def rollout_view(rollout: dict[str, Any], now: datetime | None = None) -> RenderableType:
    """Everything about one rollout that a person on call asks for."""
    parsed = PromptRollout.model_validate(rollout)
    status = parsed.status or RolloutStatus()
    now = now or datetime.now(UTC)
    parts: list[RenderableType] = [_facts(parsed, status), Text(), _arms(parsed, status)]
    if status.analysis:
        parts += [Text(), analysis_table(status.analysis)]
    if status.history:
        parts += [Text(), _decisions(status.history[:DECISIONS_SHOWN], now)]
    return Group(*parts)


def list_view(rollouts: Iterable[dict[str, Any]]) -> RenderableType:
    """One line for each rollout of a namespace."""
    table = _table("Name", "Phase", "Step", "Weight", "Stable", "Canary", "Message")
    for rollout in rollouts:
        parsed = PromptRollout.model_validate(rollout)
        status = parsed.status or RolloutStatus()
        table.add_row(
            parsed.metadata.name,
            _phase(status),
            status.step,
            f"{status.weight} %" if status.canary else "",
            short_digest(status.stable.digest) if status.stable else "",
            short_digest(status.canary.digest) if status.canary else "",
            escape(status.message),
        )
    return table if table.row_count else Text("No rollouts in this namespace.")


def analysis_table(rows: Iterable[ObjectiveStatus]) -> Table:
    """The evidence: each objective with both values and the interval for their difference."""
    table = _table("Objective", "Verdict", "Canary", "Stable", "Difference", "Samples", "In step", "Why")
    for row in rows:
        icon, colour = VERDICTS[row.verdict]
        table.add_row(
            row.name,
            f"[{colour}]{icon} {row.verdict}[/]",
            row.canary,
            row.stable,
            escape(row.difference),
            f"{row.canary_samples} / {row.stable_samples}",
            str(row.step_samples),
            escape(row.message),
        )
    return table


def age(since: str, now: datetime) -> str:
    """`42s`, `7m`, `3h`, `12d`: since an RFC 3339 time."""
    seconds = max(0, int((now - datetime.fromisoformat(since)).total_seconds()))
    for size, unit, limit in ((1, "s", 120), (60, "m", 7200), (3600, "h", 172_800)):
        if seconds < limit:
            return f"{seconds // size}{unit}"
    return f"{seconds // 86_400}d"


def _facts(parsed: PromptRollout, status: RolloutStatus) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    rows = [
        ("Name", parsed.metadata.name),
        ("Namespace", parsed.metadata.namespace),
        ("Gateway", parsed.spec.gateway_ref.name),
        ("Status", _phase(status)),
        ("Message", escape(status.message)),
        ("Revision", f"{status.revision}" + (f", attempt {status.attempt}" if status.attempt > 1 else "")),
        ("Step", status.step),
        ("Weight", f"{status.weight} % on the canary" if status.canary else ""),
        ("Delivery", _delivery(status)),
        ("Paused", "by spec.paused" if parsed.spec.paused else "by `pause`" if status.paused else ""),
    ]
    for label, value in rows:
        if value:
            table.add_row(f"{label}:", value)
    for condition in status.conditions:
        if condition.type in ("InvalidSpec", "InsufficientTraffic") and condition.status == "True":
            table.add_row(f"{condition.type}:", f"[yellow]{escape(condition.message)}[/]")
        if condition.type == "MetricsAvailable" and condition.status == "False":
            table.add_row("Metrics:", f"[yellow]{escape(condition.message)}[/]")
    return table


def _arms(parsed: PromptRollout, status: RolloutStatus) -> Tree:
    icon, colour = ICONS.get(status.phase or "", ("?", "white"))
    tree = Tree(f"[{colour}]{icon}[/] {parsed.metadata.name}")
    share = 100 - status.weight if status.canary else 100
    if status.stable:
        tree.add(f"[green]stable[/]    {share:3} %  {status.stable.version}  {short_digest(status.stable.digest)}")
    if status.canary:
        tree.add(
            f"[yellow]canary[/]    {status.weight:3} %  {status.canary.version}  {short_digest(status.canary.digest)}"
        )
    if status.previous:
        kept = "  (loaded until the bake is over)" if status.stage == "Baking" else ""
        tree.add(f"[dim]previous[/]         {status.previous.version}  {short_digest(status.previous.digest)}{kept}")
    for rejected in status.rejected:
        tree.add(
            f"[red]rejected[/]         {short_digest(rejected.digest)}  {rejected.reason}, attempt {rejected.attempt}"
        )
    return tree


def _decisions(decisions: Iterable[Decision], now: datetime) -> Table:
    table = _table("Age", "Decision", "Step", "Weight", "Message")
    for decision in decisions:
        colour = "red" if decision.type == "Warning" else "default"
        table.add_row(
            age(decision.at, now),
            f"[{colour}]{decision.reason}[/]",
            decision.step,
            f"{decision.weight} %",
            escape(decision.message),
        )
    return table


def _delivery(status: RolloutStatus) -> str:
    delivery = status.delivery
    if not delivery.sequence:
        return ""
    text = f"{delivery.acknowledged}/{delivery.total} pods confirmed configuration {delivery.sequence}"
    for laggard in delivery.laggards:
        text += f"\n[yellow]{laggard.pod}: {escape(laggard.reason)}[/]"
    return text


def _phase(status: RolloutStatus) -> str:
    if status.phase is None:
        return "unknown: no operator has reported on it yet"
    icon, colour = ICONS[status.phase]
    return f"[{colour}]{icon} {status.phase}[/]"


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        wrapped = column in ("Message", "Why")
        table.add_column(column.upper(), no_wrap=not wrapped, overflow="fold" if wrapped else "ellipsis")
    return table
