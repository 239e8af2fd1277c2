"""How `promptrollout status` looks: the tree of one rollout, with its evidence and its last decisions."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from promptrollout.api.names import short_digest
from promptrollout.api.rollout import Decision, ObjectiveStatus, PromptRollout, RolloutStatus
from promptrollout.engine.lifecycle.analysis import WATCHED

# as in `kubectl argo rollouts get`
ICONS: Final = {
    "Healthy": ("✔", "green"),
    "Progressing": ("◌", "cyan"),
    "Paused": ("॥", "yellow"),
    "Degraded": ("✖", "red"),
}
VERDICTS: Final = {"Pass": ("✔", "green"), "Breach": ("✖", "red"), "NoEvidence": ("◌", "yellow")}
NOT_SEEN: Final = "no operator has reported on it yet"
DECISIONS_SHOWN: Final = 5
TEXT_WIDTH: Final = 50
"""A sentence that has less room than this beside its row stands below it."""
INDENT: Final = 4


def view_that_fits(rollout: dict[str, Any], console: Console) -> RenderableType:
    """For a screen that is drawn again and again: if not all of it fits, the rows go before their sentences."""
    view = rollout_view(rollout)
    return view if len(console.render_lines(view)) <= console.height else rollout_view(rollout, brief=True)


def rollout_view(rollout: dict[str, Any], now: datetime | None = None, brief: bool = False) -> RenderableType:
    """Everything about one rollout that a person on call asks for; `brief` without the sentences of the tables."""
    parsed = PromptRollout.model_validate(rollout)
    status = parsed.status or RolloutStatus()
    now = now or datetime.now(UTC)
    parts: list[RenderableType] = [_facts(parsed, status, now), Text(), _arms(parsed, status)]
    if status.analysis:
        parts += [Text(), analysis_listing(status.analysis, brief)]
    if status.history:
        parts += [Text(), _decisions(status.history[:DECISIONS_SHOWN], now, brief)]
    return Group(*parts)


def list_view(rollouts: Iterable[dict[str, Any]], all_namespaces: bool = False) -> RenderableType:
    """One row for each rollout of a namespace, or of all of them."""
    spaces = ("Namespace",) if all_namespaces else ()
    listing = Listing((*spaces, "Name", "Phase", "Step", "Weight", "Stable", "Canary"), "Message")
    for rollout in rollouts:
        parsed = PromptRollout.model_validate(rollout)
        status = parsed.status or RolloutStatus()
        listing.add(
            *(parsed.metadata.namespace for _ in spaces),
            parsed.metadata.name,
            "unknown" if status.phase is None else _phase(status),
            status.step,
            f"{status.weight} %" if status.canary else "",
            short_digest(status.stable.digest) if status.stable else "",
            short_digest(status.canary.digest) if status.canary else "",
            text=NOT_SEEN if status.phase is None else escape(status.message),
        )
    return listing if listing.rows else Text(f"No rollouts in {'any' if all_namespaces else 'this'} namespace.")


def analysis_listing(rows: Iterable[ObjectiveStatus], brief: bool = False) -> "Listing":
    """The evidence: each objective with both values, the interval for their difference, and what follows."""
    columns = ("Objective", "Verdict", "Canary", "Stable", "Samples", "In step")
    listing = Listing(columns, "" if brief else "Difference and why")
    for row in rows:
        icon, colour = VERDICTS[row.verdict]
        listing.add(
            row.name,
            f"[{colour}]{icon} {row.verdict}[/]",
            row.canary,
            row.stable,
            f"{row.canary_samples} / {row.stable_samples}",
            str(row.step_samples),
            text=escape("; ".join(part for part in (row.difference, row.message) if part)),
        )
    return listing


@dataclass
class Listing:
    """Rows of short cells with a sentence each: beside the row where there is room, else below it. Cells are markup."""

    columns: tuple[str, ...]
    sentence: str
    """The title of the last column. Empty: the sentences are left out."""
    rows: list[tuple[tuple[str, ...], str]] = field(default_factory=list)

    def add(self, *cells: str, text: str) -> None:
        self.rows.append((cells, text))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        head = [column.upper() for column in self.columns]
        lines = [[Text.from_markup(cell) for cell in cells] for cells, _ in self.rows]
        widths = [max(len(title), *(line[n].cell_len for line in lines)) for n, title in enumerate(head)]
        beside = options.max_width - sum(widths) - 2 * len(widths)
        if self.sentence and beside >= TEXT_WIDTH:
            table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
            for title in head:
                table.add_column(title, no_wrap=True)
            table.add_column(self.sentence.upper(), overflow="fold")
            for cells, text in self.rows:
                table.add_row(*cells, text)
            yield table
            return
        yield from _lines([Text(title, style="bold") for title in head], widths, options.max_width)
        for line, (_, text) in zip(lines, self.rows, strict=True):
            yield from _lines(line, widths, options.max_width)
            if text and self.sentence:
                yield Padding(Text.from_markup(text), (0, 0, 0, INDENT), expand=False)


def _lines(cells: Iterable[Text], widths: Iterable[int], max_width: int) -> Iterator[Text]:
    """Aligned cells; the columns for which a screen is too narrow go on in a line below."""
    line = Text()
    for cell, width in zip(cells, widths, strict=True):
        if line and line.cell_len + width > max_width:
            line.rstrip()
            yield line
            line = Text(" " * INDENT)
        line.append_text(cell).append(" " * (width - cell.cell_len + 2))
    line.rstrip()
    if line:
        yield line


def age(since: str, now: datetime) -> str:
    """`42s`, `7m`, `3h`, `12d`: since an RFC 3339 time."""
    return _duration((now - datetime.fromisoformat(since)).total_seconds())


def _duration(exact_seconds: float) -> str:
    seconds = max(0, int(exact_seconds))
    for size, unit, limit in ((1, "s", 120), (60, "m", 7200), (3600, "h", 172_800)):
        if seconds < limit:
            return f"{seconds // size}{unit}"
    return f"{seconds // 86_400}d"


def _facts(parsed: PromptRollout, status: RolloutStatus, now: datetime) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    held_back = _held_back(status)
    rows = [
        ("Name", parsed.metadata.name),
        ("Namespace", parsed.metadata.namespace),
        ("Gateway", parsed.spec.gateway_ref.name),
        ("Status", _phase(status)),
        ("Message", escape(status.message)),
        ("Revision", f"{status.revision}" + (f", attempt {status.attempt}" if status.attempt > 1 else "")),
        ("Step", status.step),
        ("Weight", f"{status.weight} % on the canary" if status.canary else ""),
        ("Holdback", f"{held_back} % on the version before, until the bake is over" if held_back else ""),
        ("Delivery", _delivery(status)),
        ("Evidence", _evidence(status, now)),
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
    share = 100 - (status.weight if status.canary else _held_back(status))
    if status.stable:
        tree.add(f"[green]stable[/]    {share:3} %  {status.stable.version}  {short_digest(status.stable.digest)}")
    if status.canary:
        tree.add(
            f"[yellow]canary[/]    {status.weight:3} %  {status.canary.version}  {short_digest(status.canary.digest)}"
        )
    if status.previous:
        kept = "  (loaded until the bake is over)" if status.stage == "Baking" else ""
        held_back = f"{_held_back(status):3} %" if _held_back(status) else "     "
        digest = short_digest(status.previous.digest)
        tree.add(f"[dim]previous[/]  {held_back}  {status.previous.version}  {digest}{kept}")
    for rejected in status.rejected:
        tree.add(
            f"[red]rejected[/]         {short_digest(rejected.digest)}  {rejected.reason}, attempt {rejected.attempt}"
        )
    return tree


def _held_back(status: RolloutStatus) -> int:
    """Percent of users who stay on the version before while the new one bakes."""
    return 100 - status.weight if status.stage == "Baking" else 0


def _decisions(decisions: Iterable[Decision], now: datetime, brief: bool) -> Listing:
    listing = Listing(("Age", "Decision", "Step", "Weight"), "" if brief else "Message")
    for decision in decisions:
        colour = "red" if decision.type == "Warning" else "default"
        listing.add(
            age(decision.at, now),
            f"[{colour}]{decision.reason}[/]",
            decision.step,
            f"{decision.weight} %",
            text=escape(decision.message),
        )
    return listing


def _evidence(status: RolloutStatus, now: datetime) -> str:
    """How old what the analysis rests on is; nothing where none is gathered."""
    until, since = status.clock.evaluated_until, status.clock.compared_since or status.clock.exposed_at
    if until is None or since is None or until <= since:
        return ""  # it is still where the baseline begins
    if status.stage not in WATCHED or status.snapshot is None or not status.snapshot.analyse:
        return ""
    return f"until {_duration(now.timestamp() - until)} ago"


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
        return f"unknown: {NOT_SEEN}"
    icon, colour = ICONS[status.phase]
    return f"[{colour}]{icon} {status.phase}[/]"
