"""E-values of bad requests among requests: two arms against each other, and one arm against a fixed bound."""

import math
from typing import NamedTuple

from promptrollout.engine.statistics.evidence import Counts

MOST_LIKELY = 0.95
"""A null's rate is kept below this, and an alternative's below `CERTAIN`: who bets on certainty loses everything at the
first surprise."""
CERTAIN = 0.975


class Bet(NamedTuple):
    """ln of what each request multiplies the evidence by."""

    canary_bad: float
    canary_good: float
    stable_bad: float
    stable_good: float

    def log_value(self, counts: Counts) -> float:
        c, s = counts.canary, counts.stable
        return (
            c.total * self.canary_bad
            + (c.n - c.total) * self.canary_good
            + s.total * self.stable_bad
            + (s.n - s.total) * self.stable_good
        )

    def log_value_above(self, negligible: float, counts: Counts) -> float:
        """ln of an e-value against "the null of the bet, or the canary's rate is at most `negligible`".

        C + min(S, -n_c ln m): C and S are what the canary's and stable's requests add to the bet, m is the mean of what
        one canary request multiplies the evidence by at that rate. Below the bet's own value, and at most what C is
        worth where the rate is `negligible`; so the null may hold by either half, and by another one in each interval.
        """
        c, s = counts.canary, counts.stable
        of_canary = c.total * self.canary_bad + (c.n - c.total) * self.canary_good
        of_stable = s.total * self.stable_bad + (s.n - s.total) * self.stable_good
        good = math.exp(self.canary_good)
        mean = good + negligible * (math.exp(self.canary_bad) - good)
        return of_canary + min(of_stable, -c.n * math.log(mean))


def two_arm_bet(theta0: float, multiple: float, rate: float, canary_n: float, stable_n: float) -> Bet:
    """For p_c = multiple theta0 p_s against p_c = theta0 p_s, where stable's rate is thought to be `rate`.

    The likelihood ratio of the rates (q_c, q_s) against (theta0 rate, rate), with q_s = rate (A theta0 + B) / (A theta
    + B), A = n_c / (1 - theta0 rate), B = n_s / (1 - rate), q_c = theta q_s. The log of its mean is concave in stable's
    true rate p along p_c = theta0 p, and q_s is where its slope vanishes at p = rate. So the mean is at most 1 under
    p_c <= theta0 p_s (multiple > 1) or p_c >= theta0 p_s (multiple < 1) whatever p_s is; a wrong `rate` costs evidence,
    never validity. It has to be known before the interval.

    For theta0 = 1 this is the e-value of Turner, Ly and Gruenwald (arXiv 2106.02693, with the block's pooled null); for
    rate -> 0 it is their rare-event limit e_c ln(multiple) + (e_c + e_s) ln r, r = (n_c theta0 + n_s) / (n_c theta +
    n_s).
    """
    rate = min(rate, MOST_LIKELY / theta0, MOST_LIKELY)
    null = theta0 * rate
    # neither multiple theta0 rate nor rate / multiple, the most that the alternative's rates can be, comes near 1
    if null > 0:
        multiple = min(multiple, CERTAIN / null) if multiple > 1 else max(multiple, rate / CERTAIN)
    a, b = canary_n * theta0 / (1 - null), stable_n / (1 - rate)
    log_r = math.log1p(-a * (multiple - 1) / (a * multiple + b))
    log_canary = math.log(multiple) + log_r
    return Bet(
        log_canary,
        math.log1p(-null * math.expm1(log_canary) / (1 - null)),
        log_r,
        math.log1p(-rate * math.expm1(log_r) / (1 - rate)),
    )


def log_bound(bound: float, odds: float, requests: float, bad: float) -> float:
    """ln of the e-value of `bad` out of `requests` for `odds` times the bound's odds against the bound.

    The Bernoulli likelihood ratio, written so that it needs no rate: e ln g - n ln(1 + b (g - 1)). Its mean is at most
    1 for every rate on the bound's near side.
    """
    return bad * math.log(odds) - requests * math.log1p(bound * (odds - 1))
