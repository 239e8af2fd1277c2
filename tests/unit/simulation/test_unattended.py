"""`plan` before apply: how many good versions end at a person because users stay, and what would change it."""

import re

import numpy as np
import pytest

from promptrollout.api.rollout import Snapshot
from promptrollout.simulation.assumed import assumed
from promptrollout.simulation.forecast import forecast
from promptrollout.simulation.scenario import Users
from promptrollout.simulation.sticky import StickyVersion, assumed_users
from promptrollout.simulation.unattended import Unattended, unattended
from tests.unit.simulation.steady import rules

STEPS = [{"weight": 50, "minDurationSeconds": 1200}]
ERRORS = {"name": "errors", "signal": "ErrorRate", "versusStable": {"maxIncreasePercent": 50}}
COST = {"name": "cost", "signal": "CostPerRequest", "versusStable": {"maxIncreasePercent": 20}}
REQUESTS_PER_MINUTE = 1200
FEW, MANY = 200, 1_000_000


def found(of: Snapshot, users: int) -> Unattended:
    result = unattended(of, assumed(of, REQUESTS_PER_MINUTE), users)
    assert result is not None
    return result


def test_few_users_leave_good_versions_to_a_person_and_many_do_not() -> None:
    of = rules(steps=STEPS)
    few, many = found(of, FEW), found(of, MANY)
    assert few.promoted <= few.versions / 2 < many.promoted
    assert many.doubt(of) is None
    doubt = few.doubt(of)
    assert doubt is not None
    left = few.versions - few.promoted
    assert doubt.reason.startswith(f"with 200 users who stay on their version, {left} of {few.versions} good versions ")
    assert "wait for a person: too few users to show that errors stay within their margins" in doubt.reason
    assert "stickiness.by: Request" in doubt.remedy


def test_what_is_offered_helps() -> None:
    of = rules(steps=STEPS)
    remedies = found(of, FEW).remedies
    assert remedies
    for remedy in remedies:
        if number := re.search(r"a last step of ([\d,]+) s", remedy):
            changed = rules(steps=[STEPS[0] | {"minDurationSeconds": int(number[1].replace(",", ""))}])
        elif number := re.search(r"margins (\d) times", remedy):
            changed = rules(
                steps=STEPS, objectives=[ERRORS | {"versusStable": {"maxIncreasePercent": 50 * int(number[1])}}]
            )
        elif "NoBreach" in remedy:
            changed = rules(steps=STEPS, objectives=[ERRORS | {"advanceOn": "NoBreach"}])
        else:
            assert remedy == "stickiness.by: Request"
            continue
        after = found(changed, FEW)
        assert after.promoted > after.versions / 2, remedy
        assert after.doubt(changed) is None


@pytest.mark.parametrize(
    ("policy", "end"), [("RequireApproval", "wait for a person"), ("Hold", "hold"), ("Rollback", "are rolled back")]
)
def test_how_they_end_is_what_the_rollout_says(policy: str, end: str) -> None:
    of = rules(steps=STEPS, onInsufficientTraffic=policy)
    doubt = Unattended(FEW, 20, 3, ("errors",), ("stickiness.by: Request",)).doubt(of)
    assert doubt is not None
    assert f"17 of 20 good versions {end}" in doubt.reason
    assert len(doubt.reason) <= 160


def test_the_plan_warns_and_does_not_where_requests_do_not_stay() -> None:
    of = rules(steps=STEPS)
    given = assumed(of, REQUESTS_PER_MINUTE)
    plan = forecast(of, given, FEW)
    assert plan.sticky is not None
    assert plan.sticky.users == FEW
    assert [doubt for doubt in plan.doubts if "good versions wait for a person" in doubt.reason]
    by_request = of.model_copy(update={"stickiness": of.stickiness.model_copy(update={"by": "Request"})})
    assert forecast(by_request, given, FEW).sticky is None
    assert assumed_users(given) == 4_000


def test_a_rollout_of_days_is_played_in_few_intervals() -> None:
    of = rules(steps=[{"weight": 50, "minDurationSeconds": 86_400}], maxDurationSeconds=1_000_000)
    many = found(of, MANY)
    assert many.promoted > many.versions / 2


@pytest.mark.parametrize("objective", [ERRORS, COST], ids=["rate", "mean"])
def test_users_are_as_good_on_both_arms_and_differ_among_themselves(objective: dict[str, object]) -> None:
    of = rules(steps=STEPS, objectives=[objective])
    given = assumed(of, 6_000_000)
    base = given.baselines[of.objectives[0].name].value
    spread = []
    for count in (2_000, MANY):
        users = Users(count=count, zipf_exponent=0)
        traffic = StickyVersion(np.random.default_rng(1), of, given, users, 1)
        (counts,) = traffic.counts(0, 50)[of.objectives[0].name]
        for one in (counts.canary, counts.stable):
            assert one.n == sum(n for n, _ in one.shards)
            assert one.total == pytest.approx(sum(total for _, total in one.shards))
        total = counts.canary.total + counts.stable.total
        assert total / (counts.canary.n + counts.stable.n) == pytest.approx(base, rel=0.25)
        spread.append(np.std([total / n for n, total in counts.stable.shards if n]) / base)
    assert spread[0] > 2 * spread[1]
