"""Two pictures of the results: who rolls back without need, and how long the canary's users wait otherwise."""

from collections.abc import Mapping

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter

from benchmarks.decisions.bench import NO_TOLERANCE, OURS, Figures
from benchmarks.decisions.case import ALPHA, Case
from benchmarks.report import RESULTS

Results = Mapping[str, Mapping[str, Figures]]

ORACLE = "oracle"
OUR_COLOUR, MISSED = "#0b6e4f", "#c44536"
OTHER_COLOURS = ("#8d99ae", "#5c677d", "#b08968", "#7f5539", "#9d8189", "#3d5a80")


def plot(cases: Mapping[str, Case], results: Results, name: str) -> None:
    RESULTS.mkdir(exist_ok=True)
    false_rollbacks(cases, results, name)
    requests_until_rollback(cases, results, name)


def false_rollbacks(cases: Mapping[str, Case], results: Results, name: str) -> None:
    """A dot for each rule and harmless case; ours with its 95 % interval."""
    harmless = [c for c in cases if cases[c].truth == "harmless" and OURS.name in results[c]]
    if not harmless:
        return
    rules = [r for r in rule_order(results) if r not in (ORACLE, NO_TOLERANCE.name)]
    figure, axes = plt.subplots(figsize=(10, 1.8 + 0.44 * len(harmless)), layout="constrained")
    axes.axvspan(0, 100 * ALPHA, color=OUR_COLOUR, alpha=0.08, lw=0)
    axes.axvline(100 * ALPHA, color=OUR_COLOUR, lw=1, ls="--")
    colours = colours_of(rules)
    for number, rule in enumerate(rules):
        at = [y for y, case in enumerate(harmless) if rule in results[case]]
        found = [results[harmless[y]][rule] for y in at]
        mine = rule == OURS.name
        offset = 0 if mine else (number - len(rules) / 2) * 0.1
        axes.scatter(
            [100 * f.rolled_back for f in found],
            [y + offset for y in at],
            s=70 if mine else 34,
            color=colours[rule],
            marker="D" if mine else "o",
            zorder=4 if mine else 3,
            label=rule,
            edgecolor="white",
            linewidth=0.6,
            clip_on=False,
        )
        if mine:
            for y, f in zip(at, found, strict=True):
                axes.plot([100 * f.rolled_back_low, 100 * f.rolled_back_high], [y, y], color=OUR_COLOUR, lw=2, zorder=3)
    axes.set_yticks(range(len(harmless)), harmless)
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=5, linscale=1.2)
    axes.set_xlim(-0.15, 105)
    axes.set_xticks([0, 1, 2, 5, 10, 20, 50, 100])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g} %"))
    axes.minorticks_off()
    axes.grid(axis="y", color="#e6e6e6", zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"harmless canaries rolled back (dashed: the level, {ALPHA:.0%})")
    axes.set_title("False rollbacks", loc="left", fontweight="bold")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(RESULTS / f"{name}-false-rollback.png", dpi=150)
    plt.close(figure)


def requests_until_rollback(cases: Mapping[str, Case], results: Results, name: str) -> None:
    """The median as a multiple of the oracle's, by rule; beside it what a rule missed, and how often it is wrong."""
    known = [c for c in cases if cases[c].compares_with_oracle and ORACLE in results[c]]
    if not known:
        return
    rules = [r for r in rule_order(results) if r != ORACLE]
    colours = colours_of(rules)
    figure, panels = plt.subplots(
        1, len(known), figsize=(3.2 + 3.2 * len(known), 1.5 + 0.36 * len(rules)), layout="constrained", squeeze=False
    )
    for axes, case in zip(panels[0], known, strict=True):
        oracle = results[case][ORACLE].requests_median or 1
        for y, rule in enumerate(rules):
            found = results[case].get(rule)
            if found is None:
                continue
            if found.requests_median is None:
                axes.text(1.15, y, "never rolled back", va="center", fontsize=8, color=MISSED)
                continue
            ratio = found.requests_median / oracle
            mine = rule in (OURS.name, NO_TOLERANCE.name)
            axes.plot([1, ratio], [y, y], color=colours[rule], lw=2, zorder=2)
            axes.scatter(ratio, y, color=colours[rule], s=60, marker="D" if mine else "o", zorder=3)
            missed = "" if found.rolled_back > 0.995 else f", finds {found.rolled_back:.0%}"
            colour = MISSED if missed else "#333333"
            left = ratio < 1
            axes.annotate(
                f"{ratio:.2g}×{missed}",
                (max(1, ratio) if left else ratio, y),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=colour,
            )
        axes.axvline(1, color="#333333", lw=1, ls=":", zorder=1)
        axes.set_xscale("log")
        axes.set_xlim(0.06, 200)
        axes.set_xticks([0.1, 1, 10, 100])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
        axes.minorticks_off()
        axes.set_title(f"{case}\noracle: {oracle:,.0f} requests", fontsize=10)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", color="#eeeeee", zorder=0)
        axes.set_ylim(len(rules) - 0.5, -0.5)
        axes.set_yticks(range(len(rules)), [""] * len(rules))
    panels[0][0].set_yticks(range(len(rules)), [labelled(rule, results) for rule in rules], fontsize=9)
    figure.suptitle("Canary requests until rollback, as a multiple of an oracle that knows both rates (medians)")
    figure.savefig(RESULTS / f"{name}-requests.png", dpi=150)
    plt.close(figure)


def labelled(rule: str, results: Results) -> str:
    """With its false rollbacks where nothing is wrong: speed has this price."""
    found = results.get("a-a", {}).get(rule)
    return rule if found is None else f"{rule}\n{found.rolled_back:.1%} false at A/A"


def rule_order(results: Results) -> list[str]:
    """Ours first, then as they come."""
    names = list(dict.fromkeys(rule for found in results.values() for rule in found))
    return sorted(names, key=lambda rule: (rule not in (OURS.name, NO_TOLERANCE.name), names.index(rule)))


def colours_of(rules: list[str]) -> dict[str, str]:
    others = [rule for rule in rules if rule not in (OURS.name, NO_TOLERANCE.name)]
    found = {rule: OTHER_COLOURS[i % len(OTHER_COLOURS)] for i, rule in enumerate(others)}
    return found | {OURS.name: OUR_COLOUR, NO_TOLERANCE.name: "#6fb98f"}
