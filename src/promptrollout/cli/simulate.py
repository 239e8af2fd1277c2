"""`promptrollout simulate`: what a rollout would do, by the operator's own `plan`."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console, RenderableType

from promptrollout.api.rollout import Snapshot
from promptrollout.api.strategy import Pause
from promptrollout.cli.inputs import COLUMNS, console, files_option, name_option, require, rules_in, working
from promptrollout.simulation import recorded
from promptrollout.simulation.report import run_view, summary_view
from promptrollout.simulation.summary import summary
from promptrollout.simulation.traffic import ByObjective, Traffic
from promptrollout.simulation.undecidable import promoted_weight, weight_steps
from promptrollout.simulation.world import EPOCH, Run
from promptrollout.simulation.world import simulate as roll_out

Play = Callable[[int, bool], Run]
"""Run number `n`, with looks or without."""


class Moment(click.ParamType[int]):
    """RFC 3339, or seconds since 1970."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int) or str(value).isdigit():
            return int(value)
        try:
            return int(datetime.fromisoformat(str(value)).timestamp())
        except ValueError:
            self.fail(f"{value!r} is not a time: write for example 2026-11-21T10:00:00Z", param, ctx)


@click.command()
@files_option
@name_option
@click.option("--scenario", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Synthetic metrics.")
@click.option(
    "--recorded",
    "recording",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Recorded metrics: JSON lines.",
)
@click.option(
    "--prometheus", "url", metavar="URL", help="Historical metrics; needs --from, --to, --uid, --stable and --canary."
)
@click.option("--from", "start", type=Moment(), help="When the canary got its first users.")
@click.option("--to", "end", type=Moment())
@click.option("--uid", help="metadata.uid of the PromptRollout.")
@click.option("--stable", help="First ten characters of the stable version's digest, the label `version`.")
@click.option("--canary", help="The same of the canary.")
@click.option("-n", "--namespace", default="", help="Namespace of the rollout, if the series have the label namespace.")
@click.option(
    "--record", type=click.Path(dir_okay=False, path_type=Path), help="Save what --prometheus returned, for --recorded."
)
@click.option(
    "--runs", type=click.IntRange(1, 100_000), default=1, show_default=True, help="Number of runs of a scenario."
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@click.option(
    "--confirm-seconds",
    type=click.IntRange(0, 3600),
    default=0,
    show_default=True,
    help="How long pods take to confirm a configuration.",
)
@click.option(
    "--promote-after-seconds",
    type=click.IntRange(1, 2_592_000),
    help="End each pause without durationSeconds after this time. Default: never.",
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw the first run: NAME.html or NAME.png with all panels, NAME.svg at a glance.",
)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def simulate(
    files: tuple[Path, ...],
    name: str | None,
    scenario: Path | None,
    recording: Path | None,
    url: str | None,
    record: Path | None,
    runs: int,
    seed: int,
    confirm_seconds: int,
    promote_after_seconds: int | None,
    plot: Path | None,
    output: str,
    **history: Any,
) -> None:
    """Run a rollout against synthetic, recorded or past metrics.

    One run prints the timeline that the rollout would have had; more runs of a scenario print the chance of each
    outcome, the time to it, and the bad requests let through. Formats: docs/how-to/simulate.md.
    """
    if sum(source is not None for source in (scenario, recording, url)) != 1:
        raise click.UsageError("give exactly one of --scenario, --recorded and --prometheus")
    if scenario is None and runs > 1:
        raise click.UsageError("--runs needs --scenario: recorded metrics give the same run every time")
    if plot is not None:
        require("matplotlib")
        if plot.suffix not in (".html", ".png", ".svg"):
            raise click.UsageError(f"--plot {plot}: write to a name that ends in .html, .png or .svg")
        if not plot.parent.is_dir():
            raise click.ClickException(f"--plot {plot}: directory {plot.parent} does not exist; create it")
    title, rules = rules_in(files, name)
    if promote_after_seconds is not None:
        rules = _attended(rules, promote_after_seconds)
    try:
        if scenario is not None:
            rules, play, notes = _synthetic(scenario, rules, seed, confirm_seconds)
        else:
            found = _past(title, recording, url, rules, record, history)
            play, notes = (
                _replay(found, rules, confirm_seconds),
                lambda: list(found.warnings(o.name for o in rules.objectives)),
            )
        played = list(_progress(play, runs))
        view: RenderableType
        if runs == 1:
            view = run_view(title, played[0], rules, notes())
        else:
            view = summary_view(title, summary(played), rules, notes())
        if output == "json":
            click.echo(json.dumps(_plain(played, notes()), indent=2))
        else:
            console().print(view)
        if plot is not None:
            _draw(plot, title, rules, play(0, True), played, view)
    except ValueError as error:
        raise click.ClickException(str(error)) from error


def _attended(rules: Snapshot, seconds: int) -> Snapshot:
    """A person promotes every pause that has no duration."""
    steps = [
        step.model_copy(update={"pause": Pause(duration_seconds=seconds)})
        if step.pause is not None and step.pause.duration_seconds is None
        else step
        for step in rules.steps
    ]
    return rules.model_copy(update={"steps": steps})


def _synthetic(
    path: Path, rules: Snapshot, seed: int, confirm_seconds: int
) -> tuple[Snapshot, Play, Callable[[], list[str]]]:
    """Objectives whose signal the scenario does not have are left out, with a warning."""
    require("numpy")
    import numpy as np

    from promptrollout.simulation.draws import BASELINE, draw
    from promptrollout.simulation.scenario import load

    scenario = load(path)
    if "interval_seconds" not in scenario.model_fields_set:
        scenario = scenario.model_copy(update={"interval_seconds": rules.interval_seconds})
    weights = [step.weight for step in weight_steps(rules)] + [promoted_weight(rules)]

    def traffic(number: int) -> Traffic:
        return draw(scenario, np.random.default_rng([seed, number]), weights)

    probe = traffic(0)
    drawn = {signal for k in range(-BASELINE, scenario.intervals) for signal in probe.counts(k, 0)}
    kept = [objective for objective in rules.objectives if objective.signal in drawn]
    left_out = [objective for objective in rules.objectives if objective.signal not in drawn]
    if not kept and rules.analyse:
        raise ValueError(f"{path}: the scenario has no objective's signal (it has {', '.join(sorted(drawn))})")
    rules = rules.model_copy(update={"objectives": kept})
    notes = [
        f"the scenario has no {objective.signal}: the objective {objective.name} is left out" for objective in left_out
    ]

    def play(number: int, looks: bool) -> Run:
        named = ByObjective(traffic(number), kept)
        return roll_out(rules, named, confirm_seconds=confirm_seconds, looks=looks)

    return rules, play, lambda: notes


def _past(
    title: str, recording: Path | None, url: str | None, rules: Snapshot, record: Path | None, asked: dict[str, Any]
) -> recorded.Recorded:
    if recording is not None:
        return recorded.read(recording)
    missing = [
        f"--{'from' if key == 'start' else 'to' if key == 'end' else key}"
        for key, value in asked.items()
        if value is None
    ]
    if missing:
        raise click.UsageError(f"--prometheus needs {', '.join(missing)}")
    from promptrollout.simulation.history import history

    lines = history(str(url), title, rules, **asked)
    if record is not None:
        recorded.write(record, lines)
    return recorded.Recorded(lines)


def _replay(found: recorded.Recorded, rules: Snapshot, confirm_seconds: int) -> Play:
    def play(_number: int, looks: bool) -> Run:
        at = found.exposed_at or EPOCH
        return roll_out(rules, found, confirm_seconds=confirm_seconds, exposed_at=at, looks=looks)

    return play


def _progress(play: Play, runs: int) -> Iterable[Run]:
    if runs == 1:
        yield play(0, False)
        return
    with working("runs", runs) as one_more:
        for number in range(runs):
            yield play(number, False)
            one_more()


def _plain(runs: list[Run], notes: list[str]) -> dict[str, Any]:
    if len(runs) > 1:
        return {**asdict(summary(runs)), "warnings": notes}
    run = runs[0]
    rows = [row.model_copy(update={"checkpoint": None}).dump() for row in run.rows]
    timeline = [
        {key: getattr(moment, key) for key in ("seconds", "weight", "reason", "message")} for moment in run.timeline
    ]
    tolls = {name: asdict(toll) for name, toll in run.tolls.items()}
    return {
        "outcome": run.outcome,
        "seconds": run.seconds,
        "why": run.why,
        "timeline": timeline,
        "analysis": rows,
        "canary_requests": run.canary_requests,
        "tolls": tolls,
        "warnings": notes,
    }


def _draw(path: Path, title: str, rules: Snapshot, run: Run, runs: list[Run], view: RenderableType) -> None:
    if path.suffix == ".svg":
        from promptrollout.simulation import overview

        overview.write(path, rules, run)
        click.echo(f"drawn: {path}", err=True)
        return
    from promptrollout.simulation import plots

    paper = Console(width=COLUMNS + 20, file=io.StringIO())
    with paper.capture() as text:
        paper.print(view)
    heading = plots.title_of(title, run)
    plots.write(path, heading, plots.figure(heading, rules, run, runs), text.get())
    click.echo(f"drawn: {path}", err=True)
