"""A simulation as a picture: weight over time, evidence against its threshold, the difference. Needs matplotlib.

Lines differ in dash and mark as well as in colour, so that they can be told apart in print.
"""

import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from promptrollout.api.rollout import Snapshot
from promptrollout.simulation.report import ENDED, duration
from promptrollout.simulation.traces import MOST, Trace, traces
from promptrollout.simulation.world import Outcome, Run

STYLES: Sequence[dict[str, Any]] = (
    {"color": "#0b3c5d", "linestyle": "-", "marker": "o"},
    {"color": "#d9752b", "linestyle": "--", "marker": "s"},
    {"color": "#4b9b5f", "linestyle": "-.", "marker": "^"},
    {"color": "#a23b72", "linestyle": ":", "marker": "D"},
    {"color": "#6b6b6b", "linestyle": (0, (5, 1, 1, 1)), "marker": "v"},
    {"color": "#b59f00", "linestyle": (0, (1, 1)), "marker": "x"},
)
FONT: Any = {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "promptrollout", "axes.titlesize": 10}
DIFFERENCES = 6
"""Panels of differences; more objectives than this are left to the tables."""
NOTED = ("StepCompleted", "RolloutCompleted", "PauseCompleted")


def figure(title: str, rules: Snapshot, run: Run, all_runs: Sequence[Run] = ()) -> Figure:
    """`run`: simulated with looks; `all_runs`: if there are several, when they ended is a panel of its own."""
    found = traces(rules, run.looks)
    shown = [trace for trace in found if any(point.low is not None for point in trace.points)][:DIFFERENCES]
    several = len(all_runs) > 1
    heights = [1.3, 1.7, 1.7, *[1.1] * len(shown), *([1.4] if several else [])]
    with pyplot.rc_context(FONT):
        drawn, panels = pyplot.subplots(
            len(heights), 1, figsize=(9, 1.35 * sum(heights) + 0.6), height_ratios=heights, layout="constrained"
        )
        drawn.suptitle(title, fontsize=11)
        unit = _unit(run, all_runs)
        weights(panels[0], rules, run, unit)
        evidence(panels[1], found, unit, "breach", "Evidence that it is worse", "rolled back above this line")
        evidence(panels[2], found, unit, "promotion", "Evidence that it is within bounds", "proven above this line")
        for panel, trace in zip(panels[3:], shown, strict=False):
            difference(panel, trace, unit)
        for panel in panels[1 : 3 + len(shown)]:
            panel.set_xlim(panels[0].get_xlim())
            for moment in run.timeline:
                panel.axvline(moment.seconds / unit[0], color="0.75", linewidth=0.7, zorder=0)
        if several:
            endings(panels[-1], all_runs, unit)
        panels[-1].set_xlabel(f"{unit[1]} since the canary's first users")
    return drawn


def weights(panel: Axes, rules: Snapshot, run: Run, unit: tuple[float, str]) -> None:
    """The weight, and what was decided when."""
    end = max(run.seconds, run.timeline[-1].seconds if run.timeline else 0, rules.interval_seconds)
    times = [at for at, _ in run.weights] + [end]
    values = [weight for _, weight in run.weights] + [run.weights[-1][1] if run.weights else 0]
    panel.step([t / unit[0] for t in times], values, where="post", color="black", linewidth=1.6)
    panel.set_ylim(-5, 150)
    panel.set_yticks([0, 25, 50, 75, 100])
    panel.set_ylabel("canary, %")
    panel.set_title("Weight, and what was decided", loc="left")
    panel.set_xlim(0, end / unit[0] * 1.02)
    last: float | None = None
    level = 0
    for moment in run.timeline:
        if moment.reason not in NOTED and not moment.warning:
            continue
        at = moment.seconds / unit[0]
        # labels of decisions that are close to each other go one below the other
        level = (level + 1) % 3 if last is not None and at - last < 0.25 * end / unit[0] else 0
        last = at
        panel.axvline(at, color="0.75", linewidth=0.7, zorder=0)
        right = at > 0.5 * end / unit[0]
        panel.annotate(
            moment.reason,
            (at, 145 - 14 * level),
            xytext=(-3 if right else 3, 0),
            textcoords="offset points",
            ha="right" if right else "left",
            va="top",
            fontsize=8,
            fontweight="bold" if moment.warning else "normal",
        )


def evidence(
    panel: Axes, found: Sequence[Trace], unit: tuple[float, str], which: str, title: str, threshold: str
) -> None:
    """log10 of the evidence of every objective, and where it decides."""
    top = 2.2
    for number, trace in enumerate(found):
        values = [getattr(point, which) for point in trace.points]
        top = max([top, *values])
        times = [point.seconds / unit[0] for point in trace.points]
        every = max(1, len(times) // 12)
        style = STYLES[number % len(STYLES)]
        panel.plot(times, values, label=trace.objective, markevery=(number % every, every), markersize=3.5, **style)
    if found:
        line = getattr(found[0], f"{which}_threshold")
        panel.axhline(line, color="black", linewidth=1.2)
        panel.annotate(
            threshold,
            (0.005, line),
            xycoords=("axes fraction", "data"),
            xytext=(0, 2),
            textcoords="offset points",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
            zorder=5,
        )
        panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
    panel.set_ylim(-0.1, min(MOST * 1.05, top * 1.15))
    panel.set_ylabel("log10 of odds")
    panel.set_title(title, loc="left")


def difference(panel: Axes, trace: Trace, unit: tuple[float, str]) -> None:
    """The interval for canary minus stable, at any time."""
    points = [(point.seconds / unit[0], point.low, point.high) for point in trace.points]
    known = [(at, low, high) for at, low, high in points if low is not None and high is not None]
    times, lows, highs = ([row[i] for row in known] for i in range(3))
    panel.fill_between(times, lows, highs, color="0.8", linewidth=0)
    panel.plot(times, [(low + high) / 2 for low, high in zip(lows, highs, strict=True)], color="black", linewidth=1)
    panel.axhline(0, color="black", linewidth=0.8, linestyle="--")
    # the first intervals know nothing and would flatten all others
    settled = sorted(max(abs(low), abs(high)) for _, low, high in known)
    reach = settled[round(0.8 * (len(settled) - 1))] * 1.3 or 1.0
    panel.set_ylim(-reach, reach)
    panel.set_ylabel(trace.unit)
    panel.set_title(f"{trace.objective}: canary minus stable, 95 % interval", loc="left")


def endings(panel: Axes, runs: Sequence[Run], unit: tuple[float, str]) -> None:
    """Share of the runs that have ended, by how."""
    end = max(run.seconds for run in runs)
    shades: dict[Outcome, dict[str, Any]] = {"Promoted": STYLES[0], "RolledBack": STYLES[1]}
    for outcome, style in shades.items():
        times = sorted(run.seconds for run in runs if run.outcome == outcome)
        shares = [100 * (i + 1) / len(runs) for i in range(len(times))]
        line = {"color": style["color"], "linestyle": style["linestyle"], "label": ENDED[outcome]}
        panel.step(
            [0, *(t / unit[0] for t in times), end / unit[0]], [0, *shares, (shares or [0])[-1]], where="post", **line
        )
    panel.set_xlim(left=0)
    panel.set_ylim(-3, 105)
    panel.set_ylabel("runs, %")
    panel.set_title(f"When {len(runs):,} runs ended (above: the first of them)", loc="left")
    panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)


def _unit(run: Run, runs: Sequence[Run]) -> tuple[float, str]:
    longest = max([run.seconds, *(each.seconds for each in runs)])
    return (60.0, "minutes") if longest <= 3 * 3600 else (3600.0, "hours")


# ---------------------------------------------------------------- files


def write(path: Path, title: str, drawn: Figure, text: str) -> None:
    """`out.png`, or `out.html`: one page with the picture inside and the tables (`text`) below."""
    if path.suffix == ".png":
        drawn.savefig(path, dpi=150)
    elif path.suffix == ".html":
        path.write_text(page(title, drawn, text), "utf-8")
    else:
        raise ValueError(f"{path}: write to a name that ends in .html or .png")
    pyplot.close(drawn)


def page(title: str, drawn: Figure, text: str) -> str:
    """Self-contained: no script, and nothing is fetched."""
    buffer = io.StringIO()
    with pyplot.rc_context(FONT):
        drawn.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>{escape(title)}</title>\n"
        "<style>body{font:14px/1.5 sans-serif;margin:2em auto;max-width:62em;padding:0 1em;color:#111;background:#fff}"
        "svg{width:100%;height:auto}pre{overflow-x:auto;font-size:13px}</style>\n"
        f"<h1>{escape(title)}</h1>\n{svg}\n<pre>{escape(text)}</pre>\n</html>\n"
    )


def title_of(name: str, run: Run) -> str:
    return f"{name}: {ENDED[run.outcome]} after {duration(run.seconds)}"
