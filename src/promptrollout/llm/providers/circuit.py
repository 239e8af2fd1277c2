"""What one arm knows of one provider: whether it answers, whether it is worth asking, how much may be tried again.

Of an arm, not of an endpoint: a version that its provider cannot answer must not take the provider from the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Literal

UNREACHABLE_AFTER: Final = 3
"""Failed tries in a row: no connection, silence, or a status that says that nobody is there."""
BELIEVED_AFTER_SECONDS: Final = 10.0
"""For so long must probes be answered, and no completion be tried, until the endpoint is taken at its word. Doubled
each time that a completion then fails."""
WINDOW_SECONDS: Final = 10.0
OPEN_TRIES: Final = 20
OPEN_SHARE: Final = 0.8
"""The circuit opens where in the window at least so many tries ended, and this share of them failed."""
TRIAL_FIRST_SECONDS: Final = 1.0
TRIAL_MAX_SECONDS: Final = 10.0
"""While it is open one request may try so often: at first, and at last after trials that failed."""
RETRIES_KEPT: Final = 10.0
RETRIES_PER_SECOND: Final = 1.0
"""The floor of the budget of further tries, beside its share of the requests; and how many can be saved up."""

State = Literal["Closed", "Open", "HalfOpen"]


class Circuit:
    """Of one arm at one provider. Used from the event loop's thread only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.failure: str | None = None
        """Why the last try failed, if it did: for operators, as it names the endpoint."""
        self.opened = 0
        """How often."""
        self.in_flight = 0
        """Tries of which nobody knows yet whether they get through."""
        self._in_a_row = 0
        self._silences = 0
        """Of them: tries that were connected, and heard nothing in their time."""
        self.slow = False
        """The endpoint answers probes while tries are silent: so it is there, and takes too long."""
        self._answers_since: float | None = None
        """Probes have been answered since then, and no completion has failed."""
        self._one_may_try = False
        self._believed = False
        self._believed_after_seconds = BELIEVED_AFTER_SECONDS
        self._open = False
        self._next_trial_at = 0.0
        self._trial_pause_seconds = TRIAL_FIRST_SECONDS
        # the window, in two halves: tries and failures of the one that fills, and of the one before
        self._half_began = clock()
        self._tries, self._failures = 0, 0
        self._tries_before, self._failures_before = 0, 0
        self._requests, self._requests_before = 0, 0
        self._retries_left = RETRIES_KEPT
        self._retries_at = clock()

    # ------------------------------------------------------------ questions

    @property
    def unreachable(self) -> bool:
        """Several tries in a row failed as if nobody were there; requests of a canary are diverted meanwhile, until a
        completion gets through."""
        return self._in_a_row >= UNREACHABLE_AFTER

    @property
    def needs_probe(self) -> bool:
        """Whether the endpoint is to be asked if it is there."""
        return self.unreachable or self._open or self.slow

    @property
    def trial_due(self) -> bool:
        """Whether the next request shall find out if completions get through again: one after each answered probe."""
        return self._one_may_try

    @property
    def closed(self) -> bool:
        """Requests are sent as they come."""
        return not self._open

    @property
    def state(self) -> State:
        if not self._open:
            return "Closed"
        return "HalfOpen" if self.in_flight else "Open"

    @property
    def retry_after_seconds(self) -> float:
        """Until the next trial of an open circuit."""
        return max(0.0, self._next_trial_at - self._clock())

    @property
    def recent_requests(self) -> int:
        """Requests of the arm in the window, whether they were sent or not."""
        self._roll()
        return self._requests + self._requests_before

    def allows(self) -> bool:
        """Whether this request may be sent: while the circuit is open, now and then one, to find out."""
        of_the_probe, self._one_may_try = self._one_may_try, False
        if not self._open or of_the_probe:
            return True
        now = self._clock()
        if now < self._next_trial_at:
            return False
        self._trial_pause_seconds = min(TRIAL_MAX_SECONDS, 2 * self._trial_pause_seconds)
        self._next_trial_at = now + self._trial_pause_seconds
        return True

    def spend_retry(self) -> bool:
        """Whether the budget has another try; takes it."""
        self._refill(0.0)
        if not self._open and self._retries_left >= 1.0:
            self._retries_left -= 1.0
            return True
        return False

    # ------------------------------------------------------------ what happened

    def record_request(self) -> None:
        """A request is the arm's."""
        self._roll()
        self._requests += 1

    def add_retry_budget(self, retry_budget_percent: int) -> None:
        """A request comes: it adds its share of a further try to the budget."""
        self._refill(retry_budget_percent / 100)

    def record_answer(self) -> None:
        """A try got an answer that is the provider's own, and no failure of it."""
        self._reached()
        self.failure = None
        self.slow = False
        self._open = False
        self._trial_pause_seconds = TRIAL_FIRST_SECONDS
        self._roll()
        self._tries += 1

    def record_rate_limit(self) -> None:
        """A try was refused for its rate: somebody is there; nothing is said of its failures."""
        self._reached()

    def record_error(self) -> None:
        """A try met a failure of a provider that is there."""
        self._reached()
        self._failed()

    def record_silence(self) -> None:
        """A try was connected, and heard nothing in its time: of an endpoint that is known to be there a failure like
        any other; otherwise as if nobody were there, until a probe is answered."""
        if self.slow:
            self.record_error()
            return
        self._silences += 1
        self._unreached()

    def record_unreachable(self) -> None:
        """A try met nobody: only several in a row say that nobody is there, as one may be this request's own."""
        self.slow = False
        self._unreached()

    def _unreached(self) -> None:
        self._in_a_row += 1
        self._answers_since = None
        if self._believed:
            self._believed = False
            self._believed_after_seconds *= 2
        self._failed()

    def record_probe(self, answered: bool) -> None:
        """The endpoint was asked for something else than a completion.

        That it answers this does not mean that it completes chats, so all that follows is that one request may try.
        Only where none comes for a while (the canary has no users) is the answer believed. But where all that failed
        were silences, somebody is there and too slow: that is a failure of the version, and no outage.
        """
        self.slow = answered and (self.slow or (self.unreachable and self._silences == self._in_a_row))
        if self.slow and self.unreachable:
            self._reached()
        self._one_may_try = answered and self.in_flight == 0
        if not self._one_may_try:
            self._answers_since = None
            return
        now = self._clock()
        if self._answers_since is None:
            self._answers_since = now
        elif now - self._answers_since >= self._believed_after_seconds and self.unreachable:
            self._in_a_row, self._silences = UNREACHABLE_AFTER - 1, 0
            self._believed = True

    # ------------------------------------------------------------

    def _reached(self) -> None:
        self._in_a_row = self._silences = 0
        self._answers_since, self._believed = None, False
        self._believed_after_seconds = BELIEVED_AFTER_SECONDS

    def _failed(self) -> None:
        self._roll()
        self._tries += 1
        self._failures += 1
        tries, failures = self._tries + self._tries_before, self._failures + self._failures_before
        if not self._open and tries >= OPEN_TRIES and failures >= OPEN_SHARE * tries:
            self._open = True
            self.opened += 1
            self._next_trial_at = self._clock() + self._trial_pause_seconds
            # once it is closed again, only what comes then opens it
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
