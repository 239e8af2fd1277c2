"""What the demo shows: a table that follows the rollout on a terminal, a line per change elsewhere, and the records."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from promptrollout.api.names import short_digest
from promptrollout.api.rollout import Decision, ObjectiveStatus, RolloutStatus
from promptrollout.sandbox.traffic import TrafficStats

_STYLES = {
    "Healthy": "bold green",
    "Progressing": "bold cyan",
    "Paused": "bold yellow",
    "Degraded": "bold red",
    "Pass": "green",
    "Breach": "bold red",
    "NoEvidence": "dim",
}
_VERDICTS = {"Pass": "pass", "Breach": "BREACH", "NoEvidence": "no evidence"}


@dataclass
class Scene:
    """All that is known at a moment; the story writes it and the views read it."""

    chapter: str = ""
    seconds: float = 0.0
    status: RolloutStatus = field(default_factory=RolloutStatus)
    traffic: TrafficStats = field(default_factory=TrafficStats)
    names: dict[str, str] = field(default_factory=dict)
    """Short digest -> what the story calls that version."""
    last_event: str = ""


def live_table(scene: Scene) -> RenderableType:
    """Arms, step, evidence per objective, last event."""
    status = scene.status
    phase = status.phase or "not reconciled yet"
    head = Text.assemble(
        (f"{scene.chapter}  ", "bold"),
        (phase, _STYLES.get(phase, "bold")),
        f"  step {status.step or '-'}  weight {status.weight} %  pods {delivered(status)}  {scene.seconds:.0f} s",
    )
    parts: list[RenderableType] = [head, Text(status.message, style="dim"), arms_table(scene)]
    if status.analysis:
        parts.append(evidence_table(status.analysis))
    if scene.last_event:
        parts.append(Text.assemble(("last event  ", "bold"), scene.last_event))
    return Group(*parts)


def delivered(status: RolloutStatus) -> str:
    """`2/2`: pods that confirmed the present configuration."""
    return f"{status.delivery.acknowledged}/{status.delivery.total}"


def arms_table(scene: Scene) -> Table:
    """Both arms as the operator names them, and what the simulated users saw of them."""
    status, traffic = scene.status, scene.traffic
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("arm")
    table.add_column("version", min_width=28, no_wrap=True)
    for title in ("weight", "users", "requests", "p95 ms"):
        table.add_column(title, justify="right")
    canary_weight = status.weight if status.canary else 0
    for arm, version, weight in (
        ("stable", status.stable, 100 - canary_weight),
        ("canary", status.canary, canary_weight),
    ):
        if version is None:
            table.add_row(arm, "-", "", "", "", "", style="dim")
            continue
        called = scene.names.get(short_digest(version.digest))
        users = traffic.users_by_last_variant.get(arm, 0)
        latency = traffic.latency_ms.get(arm, {}).get("p95")
        table.add_row(
            arm,
            version.version + (f" ({called})" if called else ""),
            f"{weight} %",
            f"{users:,}",
            f"{traffic.variants.get(arm, 0):,}",
            "" if latency is None else f"{latency:.0f}",
        )
    return table


def evidence_table(rows: Iterable[ObjectiveStatus], title: str | None = None) -> Table:
    """One line per objective: both values, samples, interval for the difference, verdict."""
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    table.add_column("objective", no_wrap=True)
    for column in ("canary", "stable", "samples"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("difference (95 %)")
    table.add_column("verdict", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            row.canary or "-",
            row.stable or "-",
            f"{row.canary_samples:,} / {row.stable_samples:,}",
            row.difference or "-",
            Text(_VERDICTS.get(row.verdict, row.verdict), style=_STYLES.get(row.verdict, "")),
        )
    return table


def change_line(scene: Scene, before: RolloutStatus) -> str | None:
    """One line if phase, stage, step, weight or an acknowledgement changed; None if nothing a reader waits for did."""
    now = scene.status
    if shown_part(now) == shown_part(before):
        return None
    parts = [f"{now.phase or '-'}", f"weight {now.weight} %"]
    if now.step:
        parts.insert(1, f"step {now.step}")
    return f"[{scene.seconds:5.1f} s] {scene.chapter}: {', '.join(parts)}: {now.message}"


def shown_part(status: RolloutStatus) -> tuple[object, ...]:
    """What makes another line; counts of samples do not."""
    return status.phase, status.stage, status.step, status.weight


def print_record(console: Console, title: str, decisions: list[Decision]) -> None:
    """A decision record, oldest first: what was decided, when, and on what evidence."""
    console.print()
    console.print(Text(title, style="bold underline"))
    for decision in decisions:
        style = "red" if decision.type == "Warning" else "green"
        where = [f"revision {decision.revision}", f"weight {decision.weight} %"]
        if decision.step:
            where.insert(1, f"step {decision.step}")
        if decision.window_seconds is not None:
            where.append(f"evidence of {decision.window_seconds} s")
        console.print(
            Text.assemble(
                (f"{decision.at}  ", "dim"),
                (decision.reason, style),
                f" ({', '.join(where)})",
            )
        )
        console.print(Text(f"  {decision.message}"))
        if decision.evidence:
            console.print(evidence_table(decision.evidence))


def print_durations(console: Console, durations: list[tuple[str, float]]) -> None:
    """Where the seconds went."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("what")
    table.add_column("seconds", justify="right")
    for what, seconds in durations:
        table.add_row(what, f"{seconds:.1f}")
    console.print()
    console.print(table)


def result_line(bad: list[Decision]) -> str:
    """The end of both changes. `bad`: the record of the bad one."""
    breach = next(decision for decision in bad if decision.reason == "ObjectiveBreached")
    requests = max((row.canary_samples for row in breach.evidence if row.verdict == "Breach"), default=0)
    return f"Result: good change at 100 %; bad change rolled back after {requests:,} canary requests"


def how_to_stop(directory: Path) -> str:
    return f"promptrollout sandbox down --dir {shlex.quote(str(directory))}"


def print_whole_lines(console: Console, text: str, style: str | None = None) -> None:
    """Commands can be pasted: a line that is wider than the terminal is not broken into several."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def how_to_connect(directory: Path) -> str:
    """After `--keep`: what still runs, what to type, and how to end it."""
    lines = [
        "",
        "The sandbox keeps running: control plane, Prometheus, operator, gateway pods and simulated model, but",
    ]
    lines += ["no users. To connect to it:"]
    if shutil.which("promptrollout") is None or shutil.which("kubectl") is None:
        lines.append(f"  export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH")
    lines += [
        f'  eval "$(promptrollout sandbox env --dir {shlex.quote(str(directory))})"',
        "  kubectl --namespace support get promptrollouts,promptversions,pods",
        "  python -m promptrollout.sandbox.traffic --url $GATEWAY_URL --model support-assistant --rate 100 "
        "--variable company=Example",
        f"To stop it: {how_to_stop(directory)}",
    ]
    return "\n".join(lines)
