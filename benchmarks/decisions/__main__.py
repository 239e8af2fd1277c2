"""`make bench-decisions`: all cases and rules; prints the table, writes results/decisions.json and two plots."""

import argparse
import time
from collections.abc import Mapping

from benchmarks.decisions.bench import NO_TOLERANCE, OURS, Figures, figures, run_all
from benchmarks.decisions.case import ALPHA, Case, read_cases
from benchmarks.decisions.plots import plot
from benchmarks.decisions.rules import TwoArmOracle, floor
from benchmarks.report import Report

ORACLE = "oracle"
FALSE_ALARMS = 2_000
"""Runs of a case in which a rollback is false."""
DETECTIONS = 300
OTHERS = 200
"""Runs of a case that other rules than ours meet too, where a rollback is false."""

Results = Mapping[str, Mapping[str, Figures]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-decisions", description=__doc__)
    parser.add_argument("--runs", type=int, help="of each case, instead of 2,000 where a rollback is false, else 300")
    parser.add_argument("--scenario", action="append", help="only cases whose name holds this; may be repeated")
    parser.add_argument("--rule", default="", help="only rules whose name holds this")
    parser.add_argument("--processes", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    cases = {
        name: case
        for name, case in read_cases().items()
        if not given.scenario or any(part in name for part in given.scenario)
    }
    if not cases:
        raise SystemExit(f"no case is called like {given.scenario}: see benchmarks/decisions/cases.yaml")
    whole = not given.scenario and not given.rule
    report = Report("decisions" if whole else "decisions-partial")
    usual = {"harmful": DETECTIONS}
    runs = {n: given.runs or case.runs or usual.get(case.truth, FALSE_ALARMS) for n, case in cases.items()}
    others = {name: runs[name] if case.truth == "harmful" else OTHERS for name, case in cases.items()}
    results: dict[str, dict[str, Figures]] = {}
    started = time.monotonic()
    for name, outcomes in run_all(list(cases), runs=runs, others=others, rule=given.rule, processes=given.processes):
        results[name] = {rule: figures(played) for rule, played in outcomes.items()}
        for rule, found in results[name].items():
            report.row(**row(cases[name], rule, found))
        if (least := floor(cases[name])) is not None:
            report.row(case=name, rule="floor", requests=round(least))
    judge(report, cases, results, given.rule)
    report.write()
    print(COLUMNS)
    plot(cases, results, report.name)
    print(f"{time.monotonic() - started:.0f} s")


def row(case: Case, rule: str, found: Figures) -> dict[str, object]:
    """One line of the table: percent, requests, minutes."""

    def whole(value: float | None) -> int | None:
        return None if value is None else round(value)

    def minutes(seconds: float | None) -> float | None:
        return None if seconds is None else seconds / 60

    least = floor(case)
    return {
        "case": case.name,
        "rule": rule,
        "runs": found.runs,
        "rolled back %": round(100 * found.rolled_back, 2),
        "95 %": f"{100 * found.rolled_back_low:.2f}-{100 * found.rolled_back_high:.2f}",
        "promoted %": round(100 * found.promoted, 2),
        "requests": whole(found.requests_median),
        "requests p90": whole(found.requests_p90),
        "excess": whole(found.excess_median),
        "excess p90": whole(found.excess_p90),
        "efficiency": round(least / found.requests_mean, 2) if least and found.requests_mean else None,
        "minutes": minutes(found.promotion_seconds_median),
        "minutes p90": minutes(found.promotion_seconds_p90),
        "blind": found.blind_decisions,
    }


COLUMNS = """rolled back %: of all runs, and its 95 % interval.
requests, excess: the canary's until rollback (median), and bad ones that stable would have spared its users.
efficiency: the floor (mean requests that any rule of this level needs) over the mean, if all runs were rolled back.
minutes: until promotion (median), of runs that were not rolled back.
blind: decisions at looks for which nothing could be read."""


def judge(report: Report, cases: Mapping[str, Case], results: Results, given_rule: str) -> None:
    """The goals that the cases at hand can tell of, one line for each."""
    for name, case in cases.items():
        ours = results[name].get(OURS.name)
        if ours is None:
            if not given_rule:
                report.goal(f"judged at all, {name}", 1, None)
            continue
        if case.promised and case.truth in ("harmless", "unreadable"):
            report.goal(f"false rollback, {name}", 100 * case.most_rolled_back, 100 * ours.rolled_back, unit="%")
        if case.most_requests is not None:
            report.goal(f"canary requests until rollback, {name}", case.most_requests, ours.requests_median)
        if case.truth == "harmless" and case.has_traffic:
            minutes = None if ours.promotion_seconds_p90 is None else ours.promotion_seconds_p90 / 60
            report.goal(f"time to promote (p90), {name}", case.planned_seconds / 60, minutes, unit="min")
        if case.truth == "margin":
            report.goal(f"false promotion, {name}", 100 * ALPHA, 100 * ours.promoted, unit="%")
        if case.truth == "unreadable":
            report.goal(f"promoted in spite of it, {name}", 100 * ALPHA, 100 * ours.promoted, unit="%")
        if case.truth == "unreadable" and case.decides_nothing:
            ended = round(ours.runs * (ours.rolled_back + ours.promoted))
            report.goal(f"runs that were decided, {name}", 0, ended)
        elif case.decides_nothing:
            report.goal(f"decisions without evidence, {name}", 0, ours.blind_decisions)
        if case.requests_at_most is not None:
            report.goal(f"requests until rollback, {name}", case.requests_at_most, ours.requests_median)
        if case.as_quick_as is not None and case.as_quick_as in results:
            other = results[case.as_quick_as][OURS.name].promotion_seconds_p90
            mine = ours.promotion_seconds_p90
            report.goal(
                f"time to promote (p90) / that of {case.as_quick_as}, {name}", 1.3, mine and other and mine / other
            )
        if case.times_two_arm_oracle is not None and TwoArmOracle.name in results[name]:
            least, mine = results[name][TwoArmOracle.name].requests_median, ours.requests_median
            ratio = mine / least if mine and least else None
            report.goal(f"requests until rollback / two-arm oracle's, {name}", case.times_two_arm_oracle, ratio)
        if name == "spotless":
            report.goal("canary requests until a spotless one is promoted", 1_000, ours.promotion_requests_median)
    for name, limit in (("errors-x3", 1.35), ("errors-x1.5", 1.55)):
        found = results.get(name, {})
        if NO_TOLERANCE.name in found and ORACLE in found:
            mine, oracle = found[NO_TOLERANCE.name].requests_median, found[ORACLE].requests_median
            ratio = mine / oracle if mine and oracle else None
            report.goal(f"requests until rollback / oracle's, {name}, rollback above 0", limit, ratio)


if __name__ == "__main__":
    main()
