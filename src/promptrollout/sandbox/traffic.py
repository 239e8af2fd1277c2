"""Traffic of simulated users: chat requests at a steady rate, counted by status, variant and version.

Open loop: requests leave at their time whether or not earlier ones were answered, as those of real users do; a slow
gateway meets the same load as a fast one and cannot hide its latency. Only loopback addresses are accepted.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import time
from bisect import bisect
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import click
import orjson

VARIANT_HEADER = "x-promptrollout-variant"
VERSION_HEADER = "x-promptrollout-version"
QUESTIONS = (
    "My router blinks red since this morning. What can I do?",
    "How do I change the address on my account?",
    "The last invoice is higher than usual, why is that?",
    "Can I get a refund for the month I did not use?",
    "How long does delivery take to the islands?",
    "I forgot my password and no mail arrives.",
    "Which plan suits a family of four?",
    "Please explain how to cancel.",
)
_KEPT_LATENCIES = 20_000


@dataclass
class TrafficStats:
    """What the users saw so far. `statuses` counts HTTP statuses; `failures` what never became one, by kind."""

    sent: int = 0
    skipped: int = 0
    answered: int = 0
    seconds: float = 0.0
    statuses: dict[int, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    variants: dict[str, int] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    users: int = 0
    users_by_last_variant: dict[str, int] = field(default_factory=dict)
    variant_changes: dict[str, int] = field(default_factory=dict)
    latency_ms: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def ok(self) -> int:
        """Requests answered in full with 200."""
        return self.statuses.get(200, 0)

    def as_json(self) -> dict[str, Any]:
        """Plain values, statuses as strings, for orjson and for files."""
        return {
            **self.__dict__,
            "statuses": {str(status): count for status, count in self.statuses.items()},
        }


class Traffic:
    """Sends requests from `start()` to `stop()`; `stats()` may be asked at any time.

    `users` are drawn by Zipf's law with exponent `zipf` (0: all equally often); `stream_share` of the requests
    stream. With the same seed the same users ask the same questions in the same order, at the same offsets.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        users: int = 3000,
        requests_per_second: float = 100.0,
        seed: int = 0,
        stream_share: float = 0.0,
        zipf: float = 0.0,
        largest_in_flight: int = 1000,
        timeout_seconds: float = 30.0,
        headers: Mapping[str, str] | None = None,
        variables: Mapping[str, str] | None = None,
        questions: Sequence[str] = QUESTIONS,
    ) -> None:
        self._url = completions_url(url)
        _at_least("users", users, 1)
        _at_least("largest_in_flight", largest_in_flight, 1)
        _at_least("zipf", zipf, 0)
        _at_least("timeout_seconds", timeout_seconds, 0.001)
        if not questions:
            raise ValueError("questions must hold at least one text")
        if not 0 <= stream_share <= 1:
            raise ValueError(f"stream_share must be between 0 and 1, not {stream_share}")
        self._model = model
        self._users = users
        self.requests_per_second = requests_per_second
        self._random = random.Random(seed)
        self._stream_share = stream_share
        self._popularity = list(accumulate(1 / rank**zipf for rank in range(1, users + 1)))
        self._largest_in_flight = largest_in_flight
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._headers = {"content-type": "application/json", **(headers or {})}
        self._variables = dict(variables) if variables else None
        self._questions = list(questions)
        self._session: aiohttp.ClientSession | None = None
        self._sender: asyncio.Task[None] | None = None
        self._in_flight: set[asyncio.Task[None]] = set()
        self._started = 0.0
        self._ran_seconds = 0.0
        self._sent = 0
        self._skipped = 0
        self._statuses: Counter[int] = Counter()
        self._failures: Counter[str] = Counter()
        self._variants: Counter[str] = Counter()
        self._versions: Counter[str] = Counter()
        self._variant_changes: Counter[str] = Counter()
        self._last_variant: dict[str, tuple[int, str]] = {}
        self._latencies: dict[str, deque[float]] = {}

    @property
    def requests_per_second(self) -> float:
        """The mean rate; may be set while traffic runs."""
        return self._rate

    @requests_per_second.setter
    def requests_per_second(self, rate: float) -> None:
        _at_least("requests_per_second", rate, 0.001)
        self._rate = rate

    async def start(self) -> None:
        """Begin to send. Refused while already sending."""
        if self._sender is not None:
            raise RuntimeError("this traffic is already running; stop() it first")
        self._session = aiohttp.ClientSession(
            timeout=self._timeout, connector=aiohttp.TCPConnector(limit=0), headers=self._headers
        )
        self._started = time.monotonic()
        self._sender = asyncio.create_task(self._send_on_time(), name="traffic")

    async def stop(self, grace_seconds: float = 5.0) -> TrafficStats:
        """Send no more, give the answers under way `grace_seconds`, and return the final counts.

        What is unanswered by then is counted under `failures` as `Abandoned`.
        """
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)
            self._sender = None
            self._ran_seconds += time.monotonic() - self._started
        if self._in_flight:
            _, late = await asyncio.wait(self._in_flight, timeout=grace_seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
            if late:
                self._failures["Abandoned"] += len(late)
        if self._session is not None:
            await self._session.close()
            self._session = None
        return self.stats()

    async def __aenter__(self) -> Traffic:
        await self.start()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.stop()

    def stats(self) -> TrafficStats:
        """The counts so far; a copy."""
        running = time.monotonic() - self._started if self._sender is not None else 0.0
        return TrafficStats(
            sent=self._sent,
            skipped=self._skipped,
            answered=sum(self._statuses.values()),
            seconds=self._ran_seconds + running,
            statuses=dict(self._statuses),
            failures=dict(self._failures),
            variants=dict(self._variants),
            versions=dict(self._versions),
            users=len(self._last_variant),
            users_by_last_variant=dict(Counter(variant for _, variant in self._last_variant.values())),
            variant_changes=dict(self._variant_changes),
            latency_ms={variant: _quantiles(kept) for variant, kept in self._latencies.items()},
        )

    async def _send_on_time(self) -> None:
        due = time.monotonic()
        while True:
            due += self._random.expovariate(self._rate)
            user, body = self._next_request()
            wait = due - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            elif self._sent % 50 == 0:
                await asyncio.sleep(0)  # behind schedule: still let the answers in
            if len(self._in_flight) >= self._largest_in_flight:
                # A gateway that hangs must not eat this machine's memory and sockets: skip, and say so in the counts.
                self._skipped += 1
                await asyncio.sleep(0)
                continue
            self._sent += 1
            task = asyncio.create_task(self._ask(self._sent, user, body))
            self._in_flight.add(task)
            task.add_done_callback(self._in_flight.discard)

    def _next_request(self) -> tuple[str, bytes]:
        rank = bisect(self._popularity, self._random.random() * self._popularity[-1])
        user = f"user-{min(rank, self._users - 1):05d}"
        request: dict[str, Any] = {
            "model": self._model,
            "user": user,
            "messages": [{"role": "user", "content": self._random.choice(self._questions)}],
        }
        if self._random.random() < self._stream_share:
            request["stream"] = True
            request["stream_options"] = {"include_usage": True}
        if self._variables is not None:
            request["prompt_variables"] = self._variables
        return user, orjson.dumps(request)

    async def _ask(self, number: int, user: str, body: bytes) -> None:
        assert self._session is not None
        started = time.perf_counter()
        try:
            async with self._session.post(self._url, data=body) as response:
                await response.read()
        except TimeoutError:
            self._failures["Timeout"] += 1
            return
        except aiohttp.ClientError as error:
            self._failures[type(error).__name__] += 1
            return
        milliseconds = (time.perf_counter() - started) * 1000
        self._statuses[response.status] += 1
        variant = response.headers.get(VARIANT_HEADER, "none")
        self._variants[variant] += 1
        self._versions[response.headers.get(VERSION_HEADER, "none")] += 1
        self._latencies.setdefault(variant, deque(maxlen=_KEPT_LATENCIES)).append(milliseconds)
        self._remember_variant(number, user, variant)

    def _remember_variant(self, number: int, user: str, variant: str) -> None:
        before_number, before = self._last_variant.get(user, (0, variant))
        if number < before_number:
            return  # an answer that a later request of the same user has overtaken says nothing about a change
        if variant != before:
            self._variant_changes[f"{before}->{variant}"] += 1
        self._last_variant[user] = (number, variant)


def completions_url(url: str) -> str:
    """The chat completions address below a gateway's URL, with or without /v1; ValueError unless it is loopback."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"url: {url!r} is not an HTTP address: use one like http://127.0.0.1:8080")
    if not _is_loopback(parts.hostname):
        raise ValueError(
            f"url: {parts.hostname} is not a loopback address, and traffic is sent to this machine only. "
            "Use localhost, for a cluster's gateway with kubectl port-forward"
        )
    path = parts.path.rstrip("/").removesuffix("/chat/completions").removesuffix("/v1")
    return parts._replace(path=f"{path}/v1/chat/completions", query="", fragment="").geturl()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise ValueError(f"{name} must be at least {least:g}, not {value}")


def _quantiles(kept: Sequence[float]) -> dict[str, float]:
    ordered = sorted(kept)
    last = len(ordered) - 1
    return {
        name: round(ordered[round(last * share)], 3) for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    }


def _pair(text: str, separator: str, option: str) -> tuple[str, str]:
    name, found, value = text.partition(separator)
    if not found:
        raise click.BadParameter(f"{text!r} is not NAME{separator}VALUE", param_hint=option)
    return name.strip(), value.strip()


@click.command()
@click.option("--url", required=True, help="The gateway, as http://127.0.0.1:PORT; only loopback.")
@click.option("--model", required=True, help="The rollout to ask for.")
@click.option("--rate", type=float, default=100.0, show_default=True, help="Requests per second, on average.")
@click.option("--seconds", type=float, default=10.0, show_default=True)
@click.option("--users", type=int, default=3000, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--stream-share", type=float, default=0.0, show_default=True)
@click.option("--zipf", type=float, default=0.0, show_default=True, help="0: every user equally often.")
@click.option("--header", "headers", multiple=True, help="NAME:VALUE for every request. Repeatable.")
@click.option("--variable", "variables", multiple=True, help="NAME=VALUE in prompt_variables. Repeatable.")
def main(
    url: str,
    model: str,
    rate: float,
    seconds: float,
    users: int,
    seed: int,
    stream_share: float,
    zipf: float,
    headers: tuple[str, ...],
    variables: tuple[str, ...],
) -> None:
    """Send simulated users' requests to a gateway and print what they saw, as JSON."""
    pairs = dict(_pair(header, ":", "--header") for header in headers)
    filled = dict(_pair(variable, "=", "--variable") for variable in variables)

    async def run() -> TrafficStats:
        traffic = Traffic(
            url,
            model,
            users=users,
            requests_per_second=rate,
            seed=seed,
            stream_share=stream_share,
            zipf=zipf,
            headers=pairs,
            variables=filled,
        )
        async with traffic:
            await asyncio.sleep(seconds)
        return traffic.stats()

    try:
        stats = asyncio.run(run())
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(orjson.dumps(stats.as_json(), option=orjson.OPT_INDENT_2).decode())


if __name__ == "__main__":
    main()
