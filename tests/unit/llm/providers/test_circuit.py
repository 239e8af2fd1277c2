"""When a circuit opens and closes, and how much its budget lets be tried again."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from promptrollout.llm.providers.circuit import Circuit
from promptrollout.llm.providers.keys import KeyRing, parse_keys


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def opened(clock: Clock) -> Circuit:
    circuit = Circuit(clock)
    for _ in range(20):
        circuit.record_error()
    assert not circuit.closed
    return circuit


@pytest.mark.parametrize(
    ("failures", "answers", "open_"), [(19, 0, False), (20, 0, True), (16, 4, True), (15, 5, False)]
)
def test_it_opens_where_four_fifths_of_twenty_tries_failed(failures: int, answers: int, open_: bool) -> None:
    circuit = Circuit(Clock())
    for _ in range(answers):
        circuit.record_answer()
    for _ in range(failures):
        circuit.record_error()
    assert circuit.closed is not open_
    assert circuit.opened == int(open_)
    assert not circuit.unreachable, "whoever answers errors is there"


def test_failures_of_long_ago_do_not_open_it() -> None:
    clock = Clock()
    circuit = Circuit(clock)
    for _ in range(19):
        circuit.record_error()
    clock.now += 10
    circuit.record_error()
    assert circuit.closed


def test_refusals_for_the_rate_do_not_open_it() -> None:
    circuit = Circuit(Clock())
    for _ in range(100):
        circuit.record_rate_limit()
    assert circuit.closed


def test_an_open_one_lets_one_through_now_and_then_ever_more_rarely() -> None:
    clock = Clock()
    circuit = opened(clock)
    let_through = []
    for tenth in range(400):
        clock.now = 100 + tenth / 10
        if circuit.allows():
            let_through.append(tenth / 10)
            circuit.record_error()
    assert let_through == [1.0, 3.0, 7.0, 15.0, 25.0, 35.0]
    assert circuit.opened == 1
    assert 0 < circuit.retry_after_seconds <= 10


def test_one_answer_closes_it_and_forgets_what_was() -> None:
    clock = Clock()
    circuit = opened(clock)
    clock.now += 1
    assert circuit.state == "Open"
    assert circuit.allows()
    circuit.in_flight += 1
    assert circuit.state == "HalfOpen"
    assert not circuit.allows()
    circuit.in_flight -= 1
    circuit.record_answer()
    assert circuit.state == "Closed"
    for _ in range(18):
        circuit.record_error()
    assert circuit.closed
    circuit.record_error()
    assert circuit.opened == 2


def test_an_answered_probe_lets_one_through_at_once() -> None:
    circuit = opened(Clock())
    assert not circuit.allows()
    circuit.record_probe(answered=True)
    assert [circuit.allows(), circuit.allows()] == [True, False]


def test_silences_of_an_endpoint_that_answers_probes_are_errors_until_it_does_not() -> None:
    circuit = Circuit(Clock())
    for _ in range(3):
        circuit.record_silence()
    assert circuit.unreachable
    assert circuit.needs_probe
    circuit.record_probe(answered=True)
    assert (circuit.unreachable, circuit.slow, circuit.needs_probe) == (False, True, True)
    for _ in range(5):
        circuit.record_silence()
    assert not circuit.unreachable
    circuit.record_probe(answered=False)
    for _ in range(3):
        circuit.record_silence()
    assert circuit.unreachable
    circuit.record_probe(answered=True)
    circuit.record_answer()
    assert not circuit.needs_probe


def test_who_breaks_connections_as_well_is_not_merely_slow() -> None:
    circuit = Circuit(Clock())
    circuit.record_silence()
    circuit.record_unreachable()
    circuit.record_silence()
    circuit.record_probe(answered=True)
    assert (circuit.unreachable, circuit.slow) == (True, False)


def test_an_outage_is_tried_again_a_fifth_as_often_as_it_is_asked_plus_the_floor() -> None:
    clock = Clock()
    circuit = Circuit(clock)
    retries = 0
    for n in range(1000):
        clock.now = 100 + n / 100
        circuit.add_retry_budget(20)
        retries += circuit.spend_retry()
    # 200 of 1,000 requests, one a second for ten seconds, and ten that were saved up
    assert 200 <= retries <= 220


def test_a_lone_request_may_be_tried_again_whatever_its_share() -> None:
    circuit = Circuit(Clock())
    circuit.add_retry_budget(0)
    assert [circuit.spend_retry() for _ in range(11)] == [True] * 10 + [False]


# ------------------------------------------------------------ keys


def test_keys_take_turns_and_one_that_was_refused_rests() -> None:
    clock = Clock()
    ring = KeyRing(clock)
    ring.replace(["a", "b", "c"])
    assert sorted(ring.next() or "" for _ in range(3)) == ["a", "b", "c"]
    ring.rest("b", 10)
    assert {ring.next() for _ in range(6)} == {"a", "c"}
    clock.now += 10
    assert {ring.next() for _ in range(6)} == {"a", "b", "c"}


def test_where_all_rest_the_one_that_is_ready_first_is_taken() -> None:
    clock = Clock()
    ring = KeyRing(clock)
    ring.replace(["a", "b"])
    ring.rest("a", 10)
    ring.rest("b", 5)
    assert not ring.another
    assert {ring.next() for _ in range(4)} == {"b"}


def test_rotation_forgets_keys_that_are_gone() -> None:
    ring = KeyRing(Clock())
    ring.replace(["a", "b"])
    ring.rest("a", 10)
    ring.replace(["a", "c"])
    assert {ring.next() for _ in range(4)} == {"c"}
    ring.replace([])
    assert ring.next() is None


def test_one_key_a_line() -> None:
    assert parse_keys("sk-1\n\n sk-2 \r\n") == ["sk-1", "sk-2"]
    for bad in ("", "\n \n", "sk-\x07", "schlüssel", "\n".join(f"k{n}" for n in range(65))):
        with pytest.raises(ValueError, match="printable ASCII") as caught:
            parse_keys(bad)
        assert "sk-" not in str(caught.value)
