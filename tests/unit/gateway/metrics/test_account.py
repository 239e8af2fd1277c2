"""Counting: once per request, exact sums, monotone series."""

import pytest

from promptrollout.api.provider import ModelPrice
from promptrollout.gateway.metrics.counters import SECONDS_KEPT, Counters
from promptrollout.gateway.metrics.outcome import Outcome
from promptrollout.gateway.metrics.series import Histogram, Series
from promptrollout.gateway.metrics.share_window import ShareWindow
from promptrollout.llm.answers.usage import MAX_TOKENS, Price, Usage
from promptrollout.llm.errors import ErrorType

LABELS = ("uid", "support", "aaaaaaaaaa", "stable", "gpt")
PRICE = Price.of(
    ModelPrice(model="gpt", input_per_million_usd="2", output_per_million_usd="8", cached_input_per_million_usd="0.5")
)


@pytest.mark.parametrize(
    ("found", "usage"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 2}, Usage(10, 0, 2)),
        ({"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 4}}, Usage(10, 4, 0)),
        ({"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 40}}, Usage(10, 10, 0)),
        (
            {"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 40}},
            Usage(10, 4, 0, 6),
        ),
        ({"prompt_tokens": -5, "completion_tokens": 1e30}, Usage(0, 0, MAX_TOKENS)),
        ({"prompt_tokens": "ten", "completion_tokens": True}, Usage(0, 0, 0)),
        ({}, None),
        (None, None),
        ("many", None),
    ],
)
def test_usage_is_read_and_clipped(found: object, usage: Usage | None) -> None:
    assert Usage.read(found) == usage


def test_cost_prices_cached_input_apart() -> None:
    assert PRICE.cost_usd(Usage(1000, 400, 100)) == pytest.approx(600 * 2e-6 + 400 * 0.5e-6 + 100 * 8e-6)
    plain = Price.of(ModelPrice(model="gpt", input_per_million_usd="2", output_per_million_usd="8"))
    assert plain.cost_usd(Usage(1000, 400, 0)) == pytest.approx(1000 * 2e-6)


def test_cost_prices_what_is_written_to_the_cache_apart_and_never_below_nothing() -> None:
    row = ModelPrice(
        model="c", input_per_million_usd="2", output_per_million_usd="8", cache_write_per_million_usd="2.5"
    )
    assert Price.of(row).cost_usd(Usage(1000, 0, 0, 400)) == pytest.approx(600 * 2e-6 + 400 * 2.5e-6)
    assert PRICE.cost_usd(Usage(1000, 0, 0, 400)) == pytest.approx(1000 * 2e-6)
    broken = Usage.with_separate_cache(10, MAX_TOKENS, MAX_TOKENS, 0)
    assert broken == Usage(MAX_TOKENS, MAX_TOKENS, 0, 0)


def test_a_request_counts_once_in_everything() -> None:
    series = Series(LABELS, duration=Histogram([0.1, 1.0]))
    series.count(Outcome(usage=Usage(1000, 0, 100), price=PRICE, seconds=0.5, contract_kept=False))
    series.count(Outcome(usage=Usage(2000, 0, 100), price=PRICE, seconds=1.0, contract_kept=True))
    series.count(Outcome(error_type="connection", price=PRICE, seconds=30.0))
    assert (series.total.requests, sum(series.errors.values()), series.errors["connection"]) == (3, 1, 1)
    assert (series.total.contract_checks, series.total.contract_failures) == (2, 1)
    assert series.duration.bins == [0, 2, 1]  # an edge belongs to its bucket
    costs = [0.0028, 0.0048, 0.0]
    assert series.total.cost_count == 3
    assert series.total.cost_sum_usd == pytest.approx(sum(costs))
    assert series.cost_sumsq_usd2 == pytest.approx(sum(c * c for c in costs))
    assert (series.total.input_tokens, series.total.cached_input_tokens, series.output_tokens) == (3000, 0, 200)


def test_an_answer_without_usage_is_no_evidence_of_cost() -> None:
    series = Series(LABELS)
    series.count(Outcome(price=PRICE))
    series.count(Outcome(price=PRICE, error_type="stream_broken"))
    series.count(Outcome(price=PRICE, error_type="timeout"))
    assert (series.total.requests, series.total.cost_count, series.usage_missing) == (3, 0, 3)


def test_a_model_without_a_price_has_no_cost_that_could_pass_an_objective() -> None:
    series = Series(LABELS)
    series.count(Outcome(usage=Usage(1, 0, 1)))
    assert (series.total.requests, series.unpriced, series.total.tokens_sum) == (1, 1, 2)
    series.count(Outcome(error_type="timeout"))
    assert (series.total.requests, series.unpriced) == (2, 1), "what failed took no tokens"
    assert (series.total.cost_count, series.total.cost_sum_usd, series.cost_sumsq_usd2) == (0, 0.0, 0.0)


@pytest.mark.parametrize("error_type", [None, "render"])
def test_what_a_caller_did_not_wait_for_is_no_error_but_took_its_time(error_type: ErrorType | None) -> None:
    series = Series(LABELS, duration=Histogram([1.0, 5.0]))
    series.count(Outcome(abandoned=True, error_type=error_type, price=PRICE, seconds=10.0))
    assert (series.total.requests, series.total.abandoned) == (1, 1)
    assert sum(series.errors.values()) == (error_type is not None)
    assert series.duration.bins == [0, 0, 1]
    assert (series.total.cost_count, series.usage_missing) == (0, 1), "nobody knows what the provider asks for it"


def test_new_edges_leave_every_exported_bucket_monotone() -> None:
    series = Series(LABELS, duration=Histogram([0.1, 1.0]))
    series.count(Outcome(seconds=0.05))
    series.count(Outcome(seconds=0.5))
    series.add_edges([0.4, 1.0])
    assert series.duration.edges_seconds == [0.1, 0.4, 1.0]
    assert series.duration.bins == [1, 0, 1, 0]
    series.count(Outcome(seconds=0.3))
    assert series.duration.bins == [1, 1, 1, 0]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_series_continue_when_a_version_comes_back_and_are_dropped_later() -> None:
    clock = Clock()
    counters = Counters(clock)
    old = counters.series("uid", "support", "a", "stable", "gpt")
    outside = counters.series("uid", "support", "a", "stable-outside", "gpt")
    counters.rollout_loaded("uid", "support", [old])
    old.total.requests = 5
    new = counters.series("uid", "support", "b", "stable", "gpt")
    counters.rollout_loaded("uid", "support", [new])
    assert (old.retired_at, outside.retired_at, new.retired_at) == (1000.0, 1000.0, None)
    clock.now += SECONDS_KEPT - 1
    assert counters.series("uid", "support", "a", "stable", "gpt") is old
    assert counters.live() == [old, outside, new]
    counters.rollout_loaded("uid", "support", [new])
    clock.now += SECONDS_KEPT + 1
    old.in_flight = 1
    assert counters.live() == [old, new], "a request that is under way will still be counted"
    old.in_flight = 0
    assert counters.live() == [new]


def test_another_rollouts_load_retires_nothing() -> None:
    counters = Counters()
    mine = counters.series("uid", "support", "a", "stable", "gpt")
    counters.rollout_loaded("uid2", "other", [])
    assert mine.retired_at is None


def test_the_share_without_a_key_is_of_the_last_minute() -> None:
    clock = Clock()
    window = ShareWindow(clock)
    assert window.share_percent() == 0
    for keyless in [True] + [False] * 199:
        window.record(keyless)
    assert window.share_percent() == 1
    clock.now += 30
    window.record(True)
    clock.now += 40
    assert window.share_percent() == 100
    clock.now += 1000
    assert window.share_percent() == 0
