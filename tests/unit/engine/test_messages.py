"""Holds and refusals are values; each has one sentence, which is short enough to read at a glance."""

import pytest

from promptrollout.engine.lifecycle.messages import hold_text, refusal_text
from promptrollout.engine.lifecycle.reasons import Hold, HoldReason, Refusal, RefusalReason

MOST = 160
NAME = "support-78a995422a (78a995422a)"


@pytest.mark.parametrize("reason", HoldReason)
def test_every_hold_has_a_short_sentence(reason: HoldReason) -> None:
    text = hold_text(Hold(reason, NAME, 1_800_000_000))
    assert 0 < len(text) <= MOST


@pytest.mark.parametrize("reason", RefusalReason)
def test_every_refusal_has_a_short_sentence(reason: RefusalReason) -> None:
    text = refusal_text(Refusal(reason, NAME, other=NAME, given=(1, 2), present=(3, 4)))
    assert 0 < len(text) <= MOST


@pytest.mark.parametrize("reason", HoldReason)
def test_only_people_pause(reason: HoldReason) -> None:
    by_people = {HoldReason.SPEC_PAUSED, HoldReason.PAUSED, HoldReason.FROZEN}
    assert Hold(reason, "paused by PromptFreeze paused").is_pause == (reason in by_people)
