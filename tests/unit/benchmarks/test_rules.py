"""The rules that ours is compared with do what their documentation, their source and their users' reports say."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks import decisions
from benchmarks.decisions.case import Case, read_cases
from benchmarks.decisions.kayenta import Kayenta, classify, mann_whitney
from benchmarks.decisions.replay import History, Rule, Verdict, replay
from benchmarks.decisions.rules import ArgoRollouts, Flagger, GrowthBook, NaiveZ, OracleSPRT, classical, floor
from promptrollout.engine.statistics.evidence import Counts
from promptrollout.simulation.draws import draw

CASES = read_cases()
GOOD, BAD, NOTHING = (100, 1), (100, 10), None


def verdicts(rule: Rule, canary: list[tuple[float, float] | None], *, available: bool = True) -> list[Verdict]:
    """What the rule says minute by minute; stable has 2 errors of 100 throughout."""
    history = History.begin(CASES["a-a"], len(canary))
    found = []
    for counts in canary:
        strata = {} if counts is None else {"ErrorRate": (Counts.of(*counts, 100, 2),)}
        history.take(5, strata, available)
        found.append(rule.decide(history))
    return found


# ---------------------------------------------------------------- Kayenta


def test_kayenta_misses_what_its_users_reported() -> None:
    """spinnaker#6278: 7 of 10 points at 100 times the value pass, 8 of 10 fail; #426: errors 0,1,2,1,0,0 pass."""
    ones = np.ones(10)
    assert classify(ones, np.array([100.0] * 7 + [1.0] * 3)) == "Pass"
    assert classify(ones, np.array([100.0] * 8 + [1.0] * 2)) == "High"
    assert classify(np.zeros(6), np.array([0.0, 1.0, 2.0, 1.0, 0.0, 0.0])) == "Pass"


def test_kayenta_drops_nan_and_knows_when_nothing_is_left() -> None:
    assert classify(np.array([1.0, np.nan]), np.array([np.nan, 1.0])) == "Pass"
    assert classify(np.array([np.nan]), np.array([1.0])) == "Nodata"


def test_mann_whitney_inverts_to_the_median_of_all_differences() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(1, 1, 60), rng.normal(0, 1, 50)
    lower, upper, estimate = mann_whitney(x, y)
    assert estimate == pytest.approx(np.median(x[:, None] - y), abs=0.01)
    assert lower < estimate < upper
    # about 2.33 standard errors of a difference of means, for normal points
    assert (upper - lower) / 2 == pytest.approx(2.33 * np.sqrt(1 / 60 + 1 / 50), rel=0.15)


def test_kayenta_judges_hourly_and_promotes_after_three_hours() -> None:
    rng = np.random.default_rng(1)
    good = verdicts(Kayenta(rng), [GOOD] * 180)
    assert good == ["hold"] * 179 + ["advance"]
    assert verdicts(Kayenta(rng), [BAD] * 60) == ["hold"] * 59 + ["rollback"]


# ---------------------------------------------------------------- Argo Rollouts and Flagger


def test_argo_aborts_at_the_fourth_failure_of_measurements_five_minutes_apart() -> None:
    minutes = ([GOOD] * 4 + [BAD]) * 2 + [GOOD] * 5 + ([GOOD] * 4 + [BAD]) * 2
    found = verdicts(ArgoRollouts(0.95), minutes)
    assert found == ["advance"] * 24 + ["rollback"]


def test_argo_counts_nan_as_a_failure_and_aborts_in_an_outage() -> None:
    assert verdicts(ArgoRollouts(0.95), [NOTHING] * 20)[-1] == "rollback"
    assert verdicts(ArgoRollouts(0.95), [NOTHING] * 5, available=False) == ["advance"] * 4 + ["rollback"]


def test_flagger_rolls_back_at_the_tick_after_its_last_failed_check_and_forgets_none() -> None:
    found = verdicts(Flagger(0.97), [BAD, GOOD, BAD, NOTHING, GOOD, BAD, BAD, GOOD])
    assert found == ["hold", "advance", "hold", "hold", "advance", "hold", "hold", "rollback"]


# ---------------------------------------------------------------- tests of the pooled counts


def test_growthbook_is_tightest_where_it_is_tuned() -> None:
    rule = GrowthBook()
    scaled = {n: rule.width(n) * n**0.5 for n in range(500, 40_000, 100)}
    assert min(scaled, key=scaled.__getitem__) == pytest.approx(5_000, rel=0.35)
    assert rule.width(5_000) * 5_000**0.5 > NaiveZ.quantile


def test_z_test_needs_a_difference() -> None:
    assert verdicts(NaiveZ(), [(100, 2)] * 5) == ["advance"] * 5
    assert verdicts(NaiveZ(), [(100, 10)])[-1] == "rollback"


def test_floor_and_oracle_know_the_rates() -> None:
    """The reference's figures: 1,352 and 112 canary requests."""
    assert floor(CASES["errors-x1.5"]) == pytest.approx(1_352, abs=1)
    assert floor(CASES["errors-x3"]) == pytest.approx(112, abs=1)
    assert floor(CASES["users-2000"]) is None
    with pytest.raises(ValueError, match="oracle"):
        OracleSPRT(CASES["x3-users-2000"])


# ---------------------------------------------------------------- replay


def test_all_rules_meet_the_same_requests() -> None:
    case = CASES["errors-x3"]
    weights = (5, 10, 20, 25, 30, 40, 50)
    again = [
        [replay(rule, case, draw(case.scenario, np.random.default_rng(7), weights)) for rule in rules]
        for rules in (classical(case, np.random.default_rng(1)), classical(case, np.random.default_rng(1))[::-1])
    ]
    shared = draw(case.scenario, np.random.default_rng(7), weights)
    together = [replay(rule, case, shared) for rule in classical(case, np.random.default_rng(1))]
    assert again[0] == together  # whoever came before leaves no trace
    assert [o for o in again[1][::-1] if o.ended == "rolled back"] == [o for o in together if o.ended == "rolled back"]


def test_a_decision_without_evidence_is_counted() -> None:
    case = CASES["prometheus-outage"]
    traffic = draw(case.scenario, np.random.default_rng(3))
    outcome = replay(ArgoRollouts(0.95), case, traffic)
    assert (outcome.ended, outcome.blind_decisions) == ("rolled back", 1)
    assert outcome.seconds == 50 * 60  # the first measurement in the outage, which begins in the 46th minute


# ---------------------------------------------------------------- what a visitor adds


def example(language: str) -> str:
    """The last block of that language in the README."""
    text = (Path(decisions.__file__).parent / "README.md").read_text("utf-8")
    return text.split(f"```{language}\n")[-1].split("```")[0]


def test_the_readmes_rule_and_case_work_as_they_stand() -> None:
    names: dict[str, object] = {"History": History, "Verdict": Verdict}
    exec(example("python"), names)
    rule = names["ThreeInARow"]()  # type: ignore[operator]
    assert verdicts(rule, [BAD, BAD, NOTHING, BAD, BAD, BAD]) == ["advance"] * 5 + ["rollback"]
    case = Case.model_validate(yaml.safe_load(example("yaml"))[0])
    traffic = draw(case.scenario, np.random.default_rng(1))
    assert replay(names["ThreeInARow"](), case, traffic).requests > 0  # type: ignore[operator]
