"""What the verbs bind a command to, and how the operator's answer is told."""

from typing import Any

import click
import pytest

from promptrollout.cli.status import outcome, parse_seconds
from promptrollout.cli.verbs import bound, news, report

STABLE = "sha256:" + "a" * 64
CANARY = "sha256:" + "b" * 64


def rollout(**status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "r", "uid": "u-1", "generation": 3},
        "spec": {
            "gatewayRef": {"name": "g"},
            "versionRef": {"name": "v"},
            "strategy": {"canary": {"steps": [{"weight": 5}]}},
            "analysis": {"mode": "None"},
        },
        "status": status,
    }


def decision(identity: str, reason: str, message: str, command: str | None = None) -> dict[str, Any]:
    at, fields = "2026-11-21T08:00:00Z", {"reason": reason, "message": message, "command": command}
    return {"id": identity, "at": at, "revision": 1, "weight": 0} | fields


def test_command_carries_what_its_author_saw() -> None:
    given = bound(rollout(stage="Stepping", revision=4, attempt=2, currentStepIndex=1), "promote", "ann", "looks fine")
    assert given.dump() | {"id": ""} == {
        "id": "",
        "verb": "promote",
        "rolloutUID": "u-1",
        "revision": 4,
        "attempt": 2,
        "step": 1,
        "by": "ann",
        "reason": "looks fine",
    }


def test_rollout_without_status_takes_no_command() -> None:
    with pytest.raises(click.ClickException, match="no operator has started rollout r yet: gateway missing"):
        bound(rollout(message="gateway missing"), "abort", "", "")


def test_refusal_is_exit_code_1_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    given = bound(rollout(stage="Idle"), "abort", "ann", "")
    text = "abort by ann refused: no canary is in progress"
    status = {"history": [decision("n", "CommandRefused", text, given.id)]}
    assert report("abort", "r", given, news(status, set())) == 1
    assert "no canary is in progress" in capsys.readouterr().err


def test_a_refusal_that_names_no_command_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    """As an operator of the release before writes it: a pipeline must not go on."""
    given = bound(rollout(stage="Idle"), "promote", "ann", "")
    status = {"history": [decision("n", "CommandRefused", "no canary is in progress", None)]}
    assert report("promote", "r", given, news(status, set())) == 1
    assert "no canary is in progress" in capsys.readouterr().err


def test_the_refusal_of_another_command_is_not_mine(capsys: pytest.CaptureFixture[str]) -> None:
    given = bound(rollout(stage="Idle"), "pause", "ann", "")
    status = {
        "history": [
            decision("c", "RolloutPaused", "ann paused the rollout"),
            decision("b", "CommandRefused", "pause by ann refused: the rollout is paused already", "other"),
            decision("a", "RolloutStarted", "old"),
        ]
    }
    assert report("pause", "r", given, news(status, {"a"})) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "rollout r: RolloutPaused: ann paused the rollout"


@pytest.mark.parametrize(
    ("status", "digest", "code"),
    [
        ({}, "", None),
        ({"phase": "Healthy", "observedGeneration": 2, "stable": STABLE}, "", None),
        ({"phase": "Healthy", "observedGeneration": 3, "stable": STABLE}, "", 0),
        ({"phase": "Healthy", "observedGeneration": 3, "stable": STABLE}, STABLE, 0),
        ({"phase": "Healthy", "observedGeneration": 3, "stable": STABLE}, "a" * 10, 0),
        ({"phase": "Healthy", "observedGeneration": 3, "stable": STABLE}, CANARY, 1),
        ({"phase": "Progressing", "observedGeneration": 3, "stable": STABLE}, CANARY, None),
        ({"phase": "Degraded", "observedGeneration": 3, "stable": STABLE}, "", 1),
        ({"phase": "Degraded", "observedGeneration": 2, "stable": STABLE}, "", None),
        ({"phase": "Healthy", "observedGeneration": 2, "stable": STABLE, "rejected": CANARY}, "b" * 10, 1),
    ],
)
def test_outcome_that_ci_waits_for(status: dict[str, Any], digest: str, code: int | None) -> None:
    body = dict(status)
    if "stable" in body:
        body["stable"] = {"version": "r-1", "digest": body["stable"]}
    if "rejected" in body:
        body["rejected"] = [{"digest": body["rejected"], "reason": "ErrorRateBreached", "at": "2026-11-21T08:00:00Z"}]
    assert outcome(rollout(**body), digest)[0] == code


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200)])
def test_times(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "0", "soon", "nan", "inf"])
def test_no_times(text: str) -> None:
    with pytest.raises(click.BadParameter, match="90s, 10m or 2h"):
        parse_seconds(text)
