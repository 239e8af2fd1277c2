"""One rollout at a glance, as an SVG for a page: its weight over time, and the evidence for it. Needs matplotlib.

Text is drawn as paths and the background is white, so that it looks the same everywhere, on dark pages too.
"""

from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter

from promptrollout.api.rollout import Snapshot
from promptrollout.simulation.report import duration
from promptrollout.simulation.traces import MOST, Trace, traces
from promptrollout.simulation.world import Run

BLUE: Final = "#2458a6"
RED: Final = "#c62828"
GREY: Final = "#5f6670"
STYLE: Any = {
    "font.size": 10,
    "svg.fonttype": "path",
    "svg.hashsalt": "promptrollout",
    "axes.edgecolor": "#c3c8ce",
    "axes.labelcolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
MINUTE: Final = 60.0


def write(path: Path, rules: Snapshot, run: Run) -> None:
    """`run`: simulated with looks. The same run gives the same bytes."""
    end = run.seconds / MINUTE
    with pyplot.rc_context(STYLE):
        drawn, (upper, lower) = pyplot.subplots(
            2,
            1,
            figsize=(8, 4.4),
            height_ratios=[1.25, 1],
            layout=ConstrainedLayoutEngine(w_pad=0.16, h_pad=0.14),
            sharex=True,
        )
        _weight(upper, run, end)
        found = traces(rules, run.looks)
        if found:
            _evidence(lower, max(found, key=lambda trace: max(point.breach for point in trace.points)), run, end)
        lower.set_xlim(0, end * 1.14)
        lower.set_xlabel("minutes since the canary's first users")
        drawn.savefig(path, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    pyplot.close(drawn)


def _weight(panel: Axes, run: Run, end: float) -> None:
    times = [seconds / MINUTE for seconds, _ in run.weights] + [end * 1.14]
    weights = [float(weight) for _, weight in run.weights] + [float(run.weights[-1][1])]
    panel.fill_between(times, weights, step="post", color=BLUE, alpha=0.14, linewidth=0)
    panel.step(times, weights, where="post", color=BLUE, linewidth=2.2, clip_on=False, zorder=4)
    panel.set_ylim(0, 108)
    panel.set_yticks([0, 25, 50, 75, 100], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    panel.set_title("Users on the new prompt", loc="left", fontsize=11, fontweight="bold", color="#20242a")
    for moment in run.timeline:
        if moment.reason in ("StepCompleted", "RolloutCompleted"):
            at = (moment.seconds / MINUTE, moment.weight)
            panel.annotate("step passed", at, (-5, 7), textcoords="offset points", ha="right", color=GREY, fontsize=9)
    if run.outcome == "RolledBack":
        last = next(weight for _, weight in reversed(run.weights) if weight)
        panel.plot([end], [last], "o", color=RED, markersize=8, zorder=5, clip_on=False)
        text = f"rolled back after {duration(run.seconds).removeprefix('0:').removesuffix(':00')} minutes"
        panel.annotate(text, (end, last), (0, 12), textcoords="offset points", ha="right", color=RED, fontweight="bold")


def _evidence(panel: Axes, trace: Trace, run: Run, end: float) -> None:
    points = [(point.seconds / MINUTE, point.breach) for point in trace.points if point.seconds <= run.seconds]
    panel.plot([at for at, _ in points], [value for _, value in points], color=GREY, linewidth=1.8)
    panel.axhline(trace.breach_threshold, color=RED, linewidth=1.2, linestyle=(0, (5, 3)))
    panel.annotate(
        "roll back above this line",
        (0, trace.breach_threshold),
        (5, 4),
        textcoords="offset points",
        color=RED,
        fontsize=9,
    )
    if points and run.outcome == "RolledBack":
        panel.plot([end], [points[-1][1]], "o", color=RED, markersize=8, zorder=5)
    panel.set_ylim(0, min(MOST, max(trace.breach_threshold, *(value for _, value in points)) * 1.35))
    panel.yaxis.set_major_locator(FixedLocator([0, 1, 2, 3, 4]))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{10**value:,.0f} : 1"))
    title = f"Evidence that the new prompt is worse ({trace.objective})"
    panel.set_title(title, loc="left", fontsize=11, fontweight="bold", color="#20242a")
