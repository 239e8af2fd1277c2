"""The demo: a sandbox, the quickstart, a good and a bad change of its prompt, and what came of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import aiohttp
import uvloop
from rich.console import Console
from rich.live import Live

from promptrollout import cluster
from promptrollout.api.delivery import VersionRef
from promptrollout.api.names import short_digest
from promptrollout.api.rollout import RolloutStatus
from promptrollout.sandbox.assets import inventory
from promptrollout.sandbox.controlplane import install
from promptrollout.sandbox.demo import view
from promptrollout.sandbox.demo.follow import Follower
from promptrollout.sandbox.demo.quickstart import Quickstart, find_quickstart
from promptrollout.sandbox.demo.view import Scene
from promptrollout.sandbox.sandbox import Sandbox
from promptrollout.sandbox.settings import OPERATOR_NAMESPACE, SandboxError, default_dir
from promptrollout.sandbox.traffic import Traffic, completions_url

VARIABLES = {"company": "Example Telecom"}
_READY_SECONDS = 60.0
_GOOD_SECONDS = 120.0
_BAD_SECONDS = 60.0
_REFRESH_SECONDS = 0.5
# a busy machine gets fewer requests instead of slower answers: latency shall tell of the prompt, not of the machine
_LARGEST_IN_FLIGHT = 60
_LAST_ANSWERS_SECONDS = 0.5


class DemoFailure(Exception):
    """Something did not end as it should; the message says what was expected and what is."""


@dataclass(frozen=True)
class Options:
    """What a person may choose."""

    directory: Path = field(default_factory=lambda: default_dir().parent / "demo")
    keep: bool = False
    users: int = 3000
    requests_per_second: float = 300.0


def run(options: Options, console: Console) -> bool:
    """Run the whole demo; True if both changes ended as they should. Stops the sandbox unless it is to be kept, also
    when it is interrupted. Raises SandboxError while another demo tells its own in the same directory, and where a
    sandbox still runs in it."""
    box = Sandbox(options.directory)
    # it begins by clearing the directory: not of another demo, nor of a sandbox that is kept
    with box.to_oneself("demo"):
        if box.is_up:
            raise SandboxError(
                f"a sandbox is running in {options.directory}, kept by an earlier demo, and stays as it is. "
                f"Stop it with:\n  {view.how_to_stop(options.directory)}\nor choose another directory with --dir"
            )
        return _run(box, options, console)


def _run(box: Sandbox, options: Options, console: Console) -> bool:
    durations: list[tuple[str, float]] = []
    result = ""
    started = time.monotonic()
    try:
        box.down()  # processes of a demo that was killed
        box.up(lambda line: console.print(line, style="dim", markup=False, highlight=False))
        durations.append(("sandbox and operator up", time.monotonic() - started))
        result = uvloop.run(_tell(options, box, console, durations))
        ended_well = True
    except (DemoFailure, SandboxError) as failure:
        console.print(f"\n{failure}", style="bold red", markup=False)
        if box.is_up:
            uvloop.run(_explain(box, console))
        ended_well = False
    except KeyboardInterrupt:
        console.print(f"\ninterrupted{'' if options.keep else ': stopping the sandbox'}", style="bold", highlight=False)
        if options.keep and box.is_up:
            view.print_whole_lines(console, view.how_to_connect(options.directory))
        raise
    finally:
        if not options.keep:
            stopping = time.monotonic()
            box.down()
            durations.append(("sandbox down", time.monotonic() - stopping))
    durations.append(("total", time.monotonic() - started))
    view.print_durations(console, durations)
    if options.keep and box.is_up:
        view.print_whole_lines(console, view.how_to_connect(options.directory))
    if ended_well:
        view.print_whole_lines(console, result, "bold green")
    return ended_well


async def _tell(options: Options, box: Sandbox, console: Console, durations: list[tuple[str, float]]) -> str:
    """Returns the result in one line."""
    quickstart = Quickstart(find_quickstart())
    async with await cluster.connect(box.kubeconfig) as api:
        follower = Follower(partial(cluster.watch, api), quickstart.namespace, quickstart.name)
        async with _running(follower.run()):
            return await Story(options, box, console, durations, quickstart, follower).tell()


class Story:
    """The demo's chapters, in order; each adds its duration and raises DemoFailure if it ends otherwise."""

    def __init__(
        self,
        options: Options,
        box: Sandbox,
        console: Console,
        durations: list[tuple[str, float]],
        quickstart: Quickstart,
        follower: Follower,
    ) -> None:
        self._options = options
        self._box = box
        self._console = console
        self._durations = durations
        self._quickstart = quickstart
        self._follower = follower
        self._kubectl = str(inventory.find_kubectl(os.environ))
        self._traffic: Traffic | None = None
        self._scene = Scene()
        self._first = quickstart.first_version()
        self._good = quickstart.version("good-change")
        self._bad = quickstart.version("bad-change")
        for version, called in ((self._first, "first"), (self._good, "good change"), (self._bad, "bad change")):
            self._scene.names[short_digest(version.digest)] = called

    async def tell(self) -> str:
        """Install, send traffic, change the prompt twice, show the records."""
        async with aiohttp.ClientSession() as session:
            url = await self._serve_first_version(session)
        self._traffic = Traffic(
            url,
            self._quickstart.name,
            users=self._options.users,
            requests_per_second=self._options.requests_per_second,
            stream_share=0.2,
            largest_in_flight=_LARGEST_IN_FLIGHT,
            variables=VARIABLES,
        )
        self._console.print(
            f"{self._options.users:,} simulated users send {self._options.requests_per_second:g} requests per second "
            f"to {url}",
            highlight=False,
        )
        async with self._traffic, _running(self._show()):
            good = await self._good_change()
            bad = await self._bad_change()
            await self._nobody_on_canary()
        self._print_ending(good, bad)
        self._console.print()
        await self._describe()
        return view.result_line(self._follower.record(bad))

    async def _serve_first_version(self, session: aiohttp.ClientSession) -> str:
        self._scene.chapter = "first version"
        with self._timed("first version served"):
            async with session.put(
                f"{self._box.model_url}/control/behaviours", json=self._quickstart.behaviours()
            ) as answer:
                if answer.status != 200:
                    raise DemoFailure(f"the simulated model refused its rules: {await answer.text()}")
            await self._apply(self._quickstart.manifests(), "examples/quickstart/")
            await self._expect(
                f"{self._first.version} is served as the first version and the rollout is Healthy",
                lambda s: s.phase == "Healthy" and s.stable == self._first,
                _READY_SECONDS,
            )
            await self._wait_ready(f"promptgateway/{self._quickstart.gateway}")
            return await self._reachable_gateway(session)

    async def _reachable_gateway(self, session: aiohttp.ClientSession) -> str:
        request = {
            "model": self._quickstart.name,
            "user": "somebody",
            "messages": [{"role": "user", "content": "Hello?"}],
            "prompt_variables": VARIABLES,
        }
        deadline = time.monotonic() + _READY_SECONDS
        problem = "no Service"
        while time.monotonic() < deadline:
            try:
                url = self._box.gateway_url(self._quickstart.namespace, self._quickstart.gateway)
                async with session.post(completions_url(url), json=request) as answer:
                    if answer.status == 200:
                        return url
                    problem = f"{answer.status}: {(await answer.text())[:500]}"
            except (SandboxError, aiohttp.ClientError) as error:
                problem = str(error)
            await asyncio.sleep(0.1)
        raise DemoFailure(f"expected an answer through the gateway; instead, after {_READY_SECONDS:.0f} s: {problem}")

    async def _good_change(self) -> int:
        """Returns the revision that the change became."""
        self._scene.chapter = "good change"
        await self._apply(self._quickstart.change("good-change"), "examples/quickstart/changes/good-change.yaml")
        with self._timed("good change applied -> Healthy at 100 %"):
            await self._expect(
                f"{self._good.version} goes 10 -> 50 -> 100 % and ends Healthy",
                lambda s: s.phase == "Healthy" and s.stable == self._good and s.weight == 100,
                _GOOD_SECONDS,
                doomed=lambda s: is_rejected(s, self._good),
            )
        revision = self._follower.status.revision
        passed = [d.message for d in self._follower.record(revision) if d.reason == "StepCompleted"]
        if len(passed) != 2:
            raise DemoFailure(f"expected two passed steps, 10 % and 50 %; instead: {passed}")
        return revision

    async def _bad_change(self) -> int:
        self._scene.chapter = "bad change"
        await self._apply(self._quickstart.change("bad-change"), "examples/quickstart/changes/bad-change.yaml")
        with self._timed("bad change applied -> last pod back on stable"):
            with self._timed("bad change applied -> breach found"):
                await self._expect(
                    f"{self._bad.version} breaches an objective at its first step",
                    lambda s: is_rejected(s, self._bad),
                    _BAD_SECONDS,
                    doomed=lambda s: s.canary == self._bad and s.weight > 10,
                )
            await self._expect(
                f"the rollout is Degraded, {self._good.version} serves and every pod confirmed weight 0",
                lambda s: (
                    s.phase == "Degraded"
                    and s.stage == "Idle"
                    and s.stable == self._good
                    and is_rejected(s, self._bad)
                    and s.canary is None
                ),
                _BAD_SECONDS,
            )
        breaches = [d for d in self._follower.record(self._follower.status.revision) if d.reason == "ObjectiveBreached"]
        if len(breaches) != 1 or breaches[0].weight != 10:
            raise DemoFailure(f"expected one breach at weight 10; instead: {[(d.reason, d.weight) for d in breaches]}")
        return self._follower.status.revision

    async def _nobody_on_canary(self) -> None:
        """What the users see must agree with what the status says."""
        assert self._traffic is not None
        await asyncio.sleep(_LAST_ANSWERS_SECONDS)
        before = self._traffic.stats()
        await asyncio.sleep(_LAST_ANSWERS_SECONDS)
        after = self._traffic.stats()
        served = after.answered - before.answered
        on_canary = after.variants.get("canary", 0) - before.variants.get("canary", 0)
        if served == 0 or on_canary:
            raise DemoFailure(
                "expected all users on stable after the rollback; "
                f"instead, of {served} answers in {_LAST_ANSWERS_SECONDS} s {on_canary} came from the canary"
            )

    async def _apply(self, manifests: str, what: str) -> None:
        command = [self._kubectl, "--kubeconfig", self._box.kubeconfig, "apply", "-f", "-"]
        view.print_whole_lines(self._console, f"$ kubectl apply -f {what}", "bold")
        with self._timed(f"kubectl apply -f {what}"):
            await install.run(command, stdin=manifests)

    async def _wait_ready(self, what: str) -> None:
        arguments = ["wait", "--for=condition=Ready", what, f"--timeout={_READY_SECONDS:.0f}s"]
        arguments += ["--namespace", self._quickstart.namespace]
        view.print_whole_lines(self._console, f"$ kubectl {' '.join(arguments)}", "bold")
        await install.run([self._kubectl, "--kubeconfig", self._box.kubeconfig, *arguments])

    async def _expect(
        self,
        expected: str,
        condition: Callable[[RolloutStatus], bool],
        timeout_seconds: float,
        doomed: Callable[[RolloutStatus], bool] = lambda _: False,
    ) -> None:
        await self._follower.until(lambda s: condition(s) or doomed(s), timeout_seconds)
        status = self._follower.status
        if not condition(status):
            raise DemoFailure(
                f"expected: {expected}\n"
                f"instead:  {status.phase}, step {status.step or '-'}, weight {status.weight} %: {status.message}"
            )

    @contextlib.contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._durations.append((what, time.monotonic() - started))

    async def _show(self) -> None:
        """Draw the live table on a terminal; elsewhere print a line per change and per Event."""
        started = time.monotonic()
        if not self._console.is_terminal:
            while True:
                self._print_changes(started)
                await asyncio.sleep(_REFRESH_SECONDS)
        with Live(console=self._console, auto_refresh=False) as live:
            try:
                while True:
                    self._look(started)
                    live.update(view.live_table(self._scene), refresh=True)
                    await asyncio.sleep(_REFRESH_SECONDS)
            finally:
                self._look(started)
                live.update(view.live_table(self._scene), refresh=True)

    def _look(self, started: float) -> None:
        assert self._traffic is not None
        self._scene.seconds = time.monotonic() - started
        self._scene.status = self._follower.status
        self._scene.traffic = self._traffic.stats()
        self._scene.last_event = self._follower.events[-1] if self._follower.events else ""

    def _print_changes(self, started: float) -> None:
        before = self._scene.status
        self._look(started)
        line = view.change_line(self._scene, before)
        if line is not None:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _print_ending(self, good: int, bad: int) -> None:
        assert self._traffic is not None
        view.print_record(self._console, "Decision record of the good change", self._follower.record(good))
        view.print_record(self._console, "Decision record of the bad change", self._follower.record(bad))
        stats = self._traffic.stats()
        statuses = ", ".join(f"{count:,} x {status}" for status, count in sorted(stats.statuses.items()))
        failures = ", ".join(f"{count:,} x {kind}" for kind, count in sorted(stats.failures.items()))
        self._console.print(
            f"\n{stats.users:,} users sent {stats.sent:,} requests in {stats.seconds:.0f} s: {statuses}"
            + (f"; failures: {failures}" if failures else "")
            + (f"; {stats.skipped:,} more were left out, this machine is busy" if stats.skipped else ""),
            highlight=False,
        )

    async def _describe(self) -> None:
        await _show_command(
            self._box,
            self._console,
            ["describe", "promptrollout", self._quickstart.name, "--namespace", self._quickstart.namespace],
        )


def is_rejected(status: RolloutStatus, version: VersionRef) -> bool:
    """Whether the version's digest is among the rejected ones."""
    return any(rejected.digest == version.digest for rejected in status.rejected)


async def _explain(box: Sandbox, console: Console) -> None:
    """What a person would look at next."""
    support = ["--namespace", "support"]
    system = ["--namespace", OPERATOR_NAMESPACE]
    for arguments in (
        ["describe", "promptrollouts", *support],
        ["get", "pods", "--all-namespaces", "-o", "wide"],
        ["get", "events", *support, "--field-selector", "type=Warning"],
        ["logs", *system, "--selector", "app.kubernetes.io/name=promptrollout", "--tail", "40", "--prefix"],
        ["logs", *support, "--selector", "promptrollout.dev/gateway", "--tail", "20", "--prefix"],
    ):
        await _show_command(box, console, arguments)


async def _show_command(box: Sandbox, console: Console, arguments: list[str]) -> None:
    """Print a kubectl command and its output, or why it gave none."""
    view.print_whole_lines(console, f"$ kubectl {' '.join(arguments)}", "bold")
    try:
        kubectl = str(inventory.find_kubectl(os.environ))
        output = await install.run([kubectl, "--kubeconfig", box.kubeconfig, *arguments])
    except SandboxError as error:
        output = str(error)
    view.print_whole_lines(console, output)


@contextlib.asynccontextmanager
async def _running(coroutine: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """A task that lives as long as the block; if it fails, so does the block's end."""
    task = asyncio.create_task(coroutine)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
