"""Numbers and sentences for people: values, samples, bounds and confidence as the person on call reads them."""

import math
from decimal import Decimal

from promptrollout.engine.objectives.signals import Signal

DISPLAY_LEVEL = 0.05
"""Of the interval for the difference that people see: 95 % at any time."""


def count(n: float) -> str:
    """`84,511`; from a hundred million on `1.2e+12`."""
    return f"{n:,.0f}" if n < 1e8 else f"{n:.3g}"


def percent(value: float) -> str:
    """A number of percent with two sensible digits: `3.1 %`, `0.042 %`, `12 %`."""
    return f"{_digits(value, 2)} %"


def share(value: float) -> str:
    """A share of requests: `3.1 %`."""
    return percent(100 * value)


def usd(value: float) -> str:
    """Money: `$0.00410`, `$1.25`, `$1,240.00`."""
    sign = "-" if value < 0 else ""
    size = abs(value)
    if size >= 1e9:
        return f"{sign}${size:.3g}"
    return f"{sign}${size:,.2f}" if size >= 1 or size == 0 else f"{sign}${_digits(size, 3, pad=True)}"


def value(signal: Signal, x: float) -> str:
    """In the signal's unit: `$0.00410`, `3.1 %`, `4.21`, `1,240`."""
    if signal.unit == "usd":
        return usd(x)
    return share(x) if signal.unit == "share" else _digits(x, 3)


def confidence(level: float) -> str:
    """`98.7 % confidence`: what is missing to 100 has two significant digits."""
    return f"{(100 - 100 * Decimal(f'{level:.2g}')).normalize():f} % confidence"


def share_difference(low: float, high: float) -> str:
    """`+0.4 to +2.1 points`."""
    return f"{_signed(100 * max(low, -1.0))} to {_signed(100 * min(high, 1.0))} points"


def difference(signal: Signal, low: float, high: float, stable: float) -> str:
    """`-$0.00012 to +$0.0021 (-3 % to +52 % of stable)`."""
    text = " to ".join(f"{'+' if x > 0 else ''}{value(signal, x)}" for x in (low, high))
    if stable <= 0:
        return text
    relative = " to ".join(f"{_signed(100 * x / stable)} %" for x in (low, high))
    return f"{text} ({relative} of stable)"


def samples(canary: float, stable: float | None) -> str:
    if stable is None:
        return f"({count(canary)} requests)"
    return f"({count(canary)} and {count(stable)} requests)"


def dispersion(users: float, effective: float) -> list[str]:
    """A remark where requests count for less than one each: `users` is the variance ratio of users' habits, `effective`
    what is left of a request for what hits an arm for a while."""
    weight = effective / users
    return [] if weight > 0.8 else [f"requests are correlated: each counts for {_digits(weight, 1)} of one"]


def fits(text: str, limit: int) -> str:
    """Cut at `limit` characters; only absurd numbers get there."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _signed(x: float) -> str:
    text = _digits(abs(x), 2)
    if not any(c in "123456789" for c in text):
        return "0"
    return ("+" if x > 0 else "-") + text


def _digits(x: float, significant: int, *, pad: bool = False) -> str:
    """Fixed notation with this many significant digits, at least the integer part; tiny and huge in powers of ten."""
    size = abs(x)
    if size == 0:
        return "0"
    if size < 1e-9 or size >= 1e9:
        return f"{x:.2g}"
    decimals = max(0, significant - 1 - math.floor(math.log10(size)))
    text = f"{x:,.{decimals}f}"
    return text if pad or "." not in text else text.rstrip("0").rstrip(".")
