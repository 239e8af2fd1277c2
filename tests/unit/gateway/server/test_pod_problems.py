"""What a pod says is wrong with it beyond one rollout: in its log, and to the operator."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from promptrollout.cluster import ApiUnavailable
from promptrollout.gateway.auth.authenticate import Auth, Authenticator, authenticator_for
from promptrollout.gateway.auth.caller_keys import CallerKeys
from promptrollout.gateway.auth.token_reviews import ACCESS_PATH, TokenReviews
from promptrollout.gateway.process import Gateway
from promptrollout.gateway.server.pod_problems import DOWN_AFTER_SECONDS, PodProblems
from tests.unit.gateway.kit import Caller, arm, delivery, request

NOWHERE = "http://127.0.0.1:1/v1"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def reasons(problems: PodProblems) -> list[tuple[str, str]]:
    return [(each.reason, each.message) for each in problems.current()]


async def test_a_provider_that_is_down_is_logged_at_once_and_reported_when_it_stays_so(
    gateway: Gateway, caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    problems = PodProblems(Authenticator(), clock)
    await gateway.registry.apply("support", delivery(stable=arm(url=NOWHERE, provider_maxRetries=0)))
    for _ in range(3):
        problems.update(gateway.registry.all())
        await caller.post(request())
    assert "does not answer" not in caplog.text
    for _ in range(2):
        problems.update(gateway.registry.all())
    assert caplog.text.count("provider openai is down: rollouts support") == 1
    assert reasons(problems) == []
    clock.now += DOWN_AFTER_SECONDS
    assert reasons(problems) == [("ProviderDown", "openai")]
    serving = gateway.registry.find("support")
    assert serving is not None
    serving.stable.circuit.record_answer()
    problems.update(gateway.registry.all())
    assert reasons(problems) == []
    assert "provider openai is up again after 20 s" in caplog.text


async def test_a_provider_that_is_not_used_any_more_does_not_answer_again(
    gateway: Gateway, caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    problems = PodProblems(Authenticator(), Clock())
    await gateway.registry.apply("support", delivery(stable=arm(url=NOWHERE, provider_maxRetries=0)))
    for _ in range(3):
        await caller.post(request())
    problems.update(gateway.registry.all())
    assert problems.down() == ["openai"]
    await gateway.registry.apply("support", delivery(2, stable=arm(url=NOWHERE, provider_name="second")))
    problems.update(gateway.registry.all())
    assert "is up again" not in caplog.text
    assert "provider openai is not used any more" in caplog.text
    assert problems.down() == []


async def test_the_report_has_them(gateway: Gateway) -> None:
    assert gateway.reporter.report().problems == []
    gateway.problems._authenticator = Authenticator(keys=CallerKeys(Path("nowhere")))
    assert [each.reason for each in gateway.reporter.report().problems] == ["NoKeys"]


def test_keys_that_are_missing(tmp_path: Path) -> None:
    authenticator = authenticator_for(Auth("Keys"), CallerKeys(tmp_path), None)
    problems = PodProblems(authenticator, Clock())
    authenticator.refresh()
    assert [reason for reason, _ in reasons(problems)] == ["NoKeys"]
    (tmp_path / "app").write_text("sha256:" + "a" * 64)
    authenticator.refresh()
    assert reasons(problems) == []


async def test_a_gateway_that_may_not_review_tokens_finds_out_before_its_callers_do() -> None:
    answers: list[Mapping[str, Any] | Exception] = []
    asked: list[tuple[str, Any]] = []

    async def post(path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        asked.append((path, body["spec"]["resourceAttributes"]))
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    tokens = TokenReviews("promptrollout", (), post)
    problems = PodProblems(authenticator_for(Auth("ServiceAccounts"), CallerKeys(Path("nowhere")), tokens), Clock())
    for answer, expected in (
        (ApiUnavailable("down"), []),
        ({"status": {"allowed": False}}, ["TokenReviewsForbidden"]),
        (ApiUnavailable("down"), ["TokenReviewsForbidden"]),
        ({"status": {"allowed": True}}, []),
    ):
        answers.append(answer)
        await tokens.check()
        assert [reason for reason, _ in reasons(problems)] == expected
    wanted = {"group": "authentication.k8s.io", "resource": "tokenreviews", "verb": "create"}
    assert asked == [(ACCESS_PATH, wanted)] * 4
