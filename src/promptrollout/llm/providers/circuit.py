"""What one arm knows about one provider: whether it answers, whether to call it, how many retries are left.

Per arm, not per endpoint: a version that its provider cannot answer must not open the circuit for the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Literal

UNREACHABLE_AFTER: Final = 3
"""Failed tries in a row: no connection, no first byte in time, or a status that means that the provider is down."""
TRUSTED_AFTER_SECONDS: Final = 10.0
"""If probes are answered for so long, and no completion was tried, the endpoint counts as reachable again. Doubled each
time that a completion fails after that."""
WINDOW_SECONDS: Final = 10.0
OPEN_TRIES: Final = 20
OPEN_SHARE: Final = 0.8
"""The circuit opens if at least so many tries ended within the window, and this share of them failed."""
TRIAL_FIRST_SECONDS: Final = 1.0
TRIAL_MAX_SECONDS: Final = 10.0
"""While it is open, one request may try after so long: after the first failure, and after many."""
RETRIES_KEPT: Final = 10.0
RETRIES_PER_SECOND: Final = 1.0
"""The retry budget besides its share of the requests: how many are added per second, and how many it can hold."""

State = Literal["Closed", "Open", "HalfOpen"]


class Circuit:
    """The circuit of one arm and one provider. Used from the event loop's thread only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.failure: str | None = None
        """Why the last try failed, if it did. Only for operators, since it names the endpoint."""
        self.opened = 0
        """How often the circuit opened."""
        self.in_flight = 0
        """Tries that have neither got a first byte nor failed yet."""
        self._in_a_row = 0
        self._silences = 0
        """How many of them were connected, but got no first byte in time."""
        self.slow = False
        """The endpoint answers probes while tries get no first byte: it is up, and too slow."""
        self._answers_since: float | None = None
        """Since when probes have been answered without a failed completion."""
        self._trial_due = False
        self._trusted = False
        self._trusted_after_seconds = TRUSTED_AFTER_SECONDS
        self._open = False
        self._next_trial_at = 0.0
        self._trial_pause_seconds = TRIAL_FIRST_SECONDS
        # the window, in two halves: tries and failures of the current half, and of the previous one
        self._half_began = clock()
        self._tries, self._failures = 0, 0
        self._tries_before, self._failures_before = 0, 0
        self._requests, self._requests_before = 0, 0
        self._retries_left = RETRIES_KEPT
        self._retries_at = clock()

    # ------------------------------------------------------------ state

    @property
    def unreachable(self) -> bool:
        """Several tries in a row failed as if the provider were down. Until a completion succeeds, requests of a canary
        are answered by stable."""
        return self._in_a_row >= UNREACHABLE_AFTER

    @property
    def needs_probe(self) -> bool:
        """Whether the endpoint should be probed."""
        return self.unreachable or self._open or self.slow

    @property
    def trial_due(self) -> bool:
        """Whether the next request should test if completions succeed again: one after each answered probe."""
        return self._trial_due

    @property
    def closed(self) -> bool:
        """Requests are sent without restriction."""
        return not self._open

    @property
    def state(self) -> State:
        if not self._open:
            return "Closed"
        return "HalfOpen" if self.in_flight else "Open"

    @property
    def retry_after_seconds(self) -> float:
        """Until the next trial while the circuit is open."""
        return max(0.0, self._next_trial_at - self._clock())

    @property
    def recent_requests(self) -> int:
        """Requests of the arm within the window, whether they were sent or not."""
        self._roll()
        return self._requests + self._requests_before

    def allows(self) -> bool:
        """Whether this request may be sent: while the circuit is open, one now and then as a trial."""
        after_probe, self._trial_due = self._trial_due, False
        if not self._open or after_probe:
            return True
        now = self._clock()
        if now < self._next_trial_at:
            return False
        self._trial_pause_seconds = min(TRIAL_MAX_SECONDS, 2 * self._trial_pause_seconds)
        self._next_trial_at = now + self._trial_pause_seconds
        return True

    def spend_retry(self) -> bool:
        """Spend one retry of the budget; False if there is none."""
        self._refill(0.0)
        if not self._open and self._retries_left >= 1.0:
            self._retries_left -= 1.0
            return True
        return False

    # ------------------------------------------------------------ events

    def record_request(self) -> None:
        """A request was assigned to the arm."""
        self._roll()
        self._requests += 1

    def add_retry_budget(self, retry_budget_percent: int) -> None:
        """A request is sent: add its share to the retry budget."""
        self._refill(retry_budget_percent / 100)

    def record_answer(self) -> None:
        """A try got an answer from the provider that is not a failure of it."""
        self._reached()
        self.failure = None
        self.slow = False
        self._open = False
        self._trial_pause_seconds = TRIAL_FIRST_SECONDS
        self._roll()
        self._tries += 1

    def record_rate_limit(self) -> None:
        """A try was rate limited: the provider is up, which says nothing about its failures."""
        self._reached()

    def record_error(self) -> None:
        """A try failed at a provider that is up."""
        self._reached()
        self._failed()

    def record_silence(self) -> None:
        """A try was connected, but got no first byte in time. If the endpoint is known to be up, that is a failure like
        any other; otherwise it counts as unreachable, until a probe is answered."""
        if self.slow:
            self.record_error()
            return
        self._silences += 1
        self._unreached()

    def record_unreachable(self) -> None:
        """A try did not reach the provider. Only several in a row mean that it is down: one may be the request's
        fault."""
        self.slow = False
        self._unreached()

    def _unreached(self) -> None:
        self._in_a_row += 1
        self._answers_since = None
        if self._trusted:
            self._trusted = False
            self._trusted_after_seconds *= 2
        self._failed()

    def record_probe(self, answered: bool) -> None:
        """The endpoint was probed, with something other than a completion.

        If it answers, completions need not work yet, so one request may try. Only if none comes for a while (the canary
        has no users) it counts as reachable. But if all failed tries were silent, the provider is up and too slow: that
        is a failure of the version, and no outage.
        """
        self.slow = answered and (self.slow or (self.unreachable and self._silences == self._in_a_row))
        if self.slow and self.unreachable:
            self._reached()
        self._trial_due = answered and self.in_flight == 0
        if not self._trial_due:
            self._answers_since = None
            return
        now = self._clock()
        if self._answers_since is None:
            self._answers_since = now
        elif now - self._answers_since >= self._trusted_after_seconds and self.unreachable:
            self._in_a_row, self._silences = UNREACHABLE_AFTER - 1, 0
            self._trusted = True

    # ------------------------------------------------------------

    def _reached(self) -> None:
        self._in_a_row = self._silences = 0
        self._answers_since, self._trusted = None, False
        self._trusted_after_seconds = TRUSTED_AFTER_SECONDS

    def _failed(self) -> None:
        self._roll()
        self._tries += 1
        self._failures += 1
        tries, failures = self._tries + self._tries_before, self._failures + self._failures_before
        if not self._open and tries >= OPEN_TRIES and failures >= OPEN_SHARE * tries:
            self._open = True
            self.opened += 1
            self._next_trial_at = self._clock() + self._trial_pause_seconds
            # after it closes, only new failures open it again
            self._tries = self._failures = self._tries_before = self._failures_before = 0

    def _roll(self) -> None:
        now = self._clock()
        halves = (now - self._half_began) // (WINDOW_SECONDS / 2)
        if halves >= 1:
            self._tries_before, self._failures_before = (self._tries, self._failures) if halves < 2 else (0, 0)
            self._requests_before = self._requests if halves < 2 else 0
            self._tries = self._failures = self._requests = 0
            self._half_began = now

    def _refill(self, share: float) -> None:
        now = self._clock()
        earned = share + (now - self._retries_at) * RETRIES_PER_SECOND
        self._retries_left = min(RETRIES_KEPT, self._retries_left + earned)
        self._retries_at = now
