"""`promptrollout plan`: what a rollout's steps can detect with its traffic, before it is applied."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from promptrollout.cli.inputs import console, files_option, name_option, require, rules_in, working


@click.command()
@files_option
@name_option
@click.option(
    "--requests-per-minute", type=click.FloatRange(min=0, min_open=True), help="Requests of both versions together."
)
@click.option(
    "--users", type=click.IntRange(min=1), help="How many users send them. Default: one for each request in 200 s."
)
@click.option("--error-rate", type=click.FloatRange(0, 1), help="Stable's share of failed requests.")
@click.option("--cost-usd", type=click.FloatRange(min=0, min_open=True), help="Stable's mean cost of a request.")
@click.option("--cost-cv", type=click.FloatRange(min=0), help="Standard deviation of a request's cost over its mean.")
@click.option(
    "--assume",
    multiple=True,
    metavar="OBJECTIVE=VALUE[,cv=X][,sampled=SHARE]",
    help="Stable's share or mean of an objective; cv for means; sampled: share of requests that give a sample.",
)
@click.option(
    "--recorded",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Use traffic and values of metrics that `simulate --prometheus --record` kept.",
)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def plan(
    files: tuple[Path, ...],
    name: str | None,
    requests_per_minute: float | None,
    users: int | None,
    error_rate: float | None,
    cost_usd: float | None,
    cost_cv: float | None,
    assume: tuple[str, ...],
    recorded: Path | None,
    output: str,
) -> None:
    """Say what steps and bake can detect with this traffic, how long a good version takes, and what stays undecided.

    Values of stable that you do not give are assumed, and stated in the output.
    """
    require("numpy")
    from promptrollout.simulation import assumed
    from promptrollout.simulation.forecast import forecast
    from promptrollout.simulation.recorded import read
    from promptrollout.simulation.report import forecast_view

    if (requests_per_minute is None) == (recorded is None):
        raise click.UsageError("give --requests-per-minute, or --recorded with recorded metrics")
    title, rules = rules_in(files, name)
    try:
        known = {}
        if error_rate is not None:
            known["ErrorRate"] = assumed.Baseline(error_rate)
        if cost_usd is not None or cost_cv is not None:
            usual = assumed.DEFAULTS["CostPerRequest"]
            known["CostPerRequest"] = assumed.Baseline(
                usual.value if cost_usd is None else cost_usd, usual.spread if cost_cv is None else cost_cv
            )
        known |= dict(map(_assumption, assume))
        if recorded is not None:
            given = assumed.from_recorded(read(recorded), rules, known)
        else:
            given = assumed.assumed(rules, requests_per_minute or 0.0, known)
        with working("computing what each step can catch, up to two minutes"):
            found = forecast(rules, given, users)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if output == "json":
        click.echo(json.dumps({"assumed": asdict(given), "forecast": _finite(asdict(found))}, indent=2))
    else:
        console().print(forecast_view(title, rules, given, found))


def _assumption(text: str) -> tuple[str, Any]:
    """`cost=0.002,cv=1,sampled=0.2`."""
    from promptrollout.simulation.assumed import Baseline

    parts = [part.partition("=") for part in text.split(",")]
    try:
        numbers = {key: float(value) for key, _, value in parts}
    except ValueError:
        numbers = {}
    objective = parts[0][0]
    if not numbers or set(numbers) - {objective, "cv", "sampled"} or not all(x >= 0 for x in numbers.values()):
        raise ValueError(f"--assume {text}: write OBJECTIVE=VALUE, optionally with ,cv=X and ,sampled=SHARE")
    if not 0 < numbers.get("sampled", 1.0) <= 1:
        raise ValueError(f"--assume {text}: sampled is a share above 0 and up to 1")
    return objective, Baseline(numbers[objective], numbers.get("cv", 1.0), numbers.get("sampled", 1.0))


def _finite(value: Any) -> Any:
    """JSON has no infinity: what never happens is null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and math.isinf(value) else value
