"""Check answers against schemas of unbounded running time, in a separate process: the validator holds Python's
interpreter lock, so a thread of this process would block everything else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter, OrderedDict, deque
from typing import Final

from promptrollout.llm.answers.schema_worker import KEPT, NOT_COMPILED, request

logger = logging.getLogger(__name__)

NOT_JUDGED: Final = ("too_many_waiting", "no_cpu", "no_process", "not_compiled")
MAX_WAITING: Final = 8
"""Per schema. Further answers are not checked: their requests would take places that other rollouts need."""
PATIENCE_SECONDS: Final = 10.0
"""Wall-clock limit of a check: a worker that gets no CPU says nothing about the answer."""
_LOGGED_EACH: Final = 100
_FAULTS_OF_THE_ANSWER: Final = frozenset({-signal.SIGPROF, -signal.SIGSEGV, -signal.SIGABRT})
"""The check used up its time, its stack or its memory."""


class SchemaProcess:
    """Starts the worker when it is first needed, and again after it ended. One check at a time; schemas take turns, so
    that a slow one delays the others by one check at most."""

    def __init__(self, not_judged: Counter[str] | None = None) -> None:
        self._waiting: OrderedDict[bytes, deque[tuple[bytes, asyncio.Future[bool | None]]]] = OrderedDict()
        self._process: Process | None = None
        self._turns: asyncio.Task[None] | None = None
        self.killed = 0
        """Checks in which the kernel ended the worker."""
        self.not_judged: Counter[str] = Counter() if not_judged is None else not_judged
        """Answers that were not checked, by reason (NOT_JUDGED)."""

    async def matches(self, schema: bytes, texts: list[bytes]) -> bool | None:
        """Whether all texts are JSON that matches. False too if that takes more than 100 ms of CPU; None: not
        checked."""
        queue = self._waiting.setdefault(schema, deque())
        if len(queue) >= MAX_WAITING:
            self.not_judged["too_many_waiting"] += 1
            return None
        verdict: asyncio.Future[bool | None] = asyncio.get_running_loop().create_future()
        queue.append((request(schema, texts), verdict))
        if self._turns is None or self._turns.done():
            self._turns = asyncio.create_task(self._take_turns())
        return await verdict

    async def close(self) -> None:
        """End the worker."""
        if self._turns is not None:
            self._turns.cancel()
            await asyncio.gather(self._turns, return_exceptions=True)
        for queue in self._waiting.values():
            for _, verdict in queue:
                verdict.cancel()
        self._waiting.clear()
        await self._end()

    async def _take_turns(self) -> None:
        while self._waiting:
            schema, queue = self._waiting.popitem(last=False)
            check, verdict = queue.popleft() if queue else (b"", None)
            if queue:
                self._waiting[schema] = queue
            if verdict is None or verdict.done():  # its request was cancelled
                continue
            try:
                matches = await self._run(check)
            except Exception:  # no process can be started, or an error of ours: no request may wait for ever
                logger.exception("the process that checks output schemas failed")
                await self._end()
                self.not_judged["no_process"] += 1
                matches = None
            if not verdict.done():
                verdict.set_result(matches)

    async def _run(self, check: bytes) -> bool | None:
        """Run one check; once more if the worker was ended from outside. Raises OSError if none can be started."""
        for _ in range(2):
            if self._process is None:
                module = f"{__package__}.schema_worker"
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", module, stdin=PIPE, stdout=PIPE
                )
            process = self._process
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    process.stdin.write(check)
                    answer = await process.stdout.read(1)
            except TimeoutError:
                logger.warning(
                    "an answer was not checked against its schema: the check took longer than %d s",
                    PATIENCE_SECONDS,
                )
                await self._end()
                self.not_judged["no_cpu"] += 1
                return None
            if answer:
                if answer == NOT_COMPILED:
                    logger.error("an output schema cannot be compiled: answers are not checked against it")
                    self.not_judged["not_compiled"] += 1
                    return None
                return answer == KEPT
            status = await process.wait()
            self._process = None
            if status in _FAULTS_OF_THE_ANSWER:
                self.killed += 1
                if self.killed % _LOGGED_EACH == 1:
                    logger.warning(
                        "checks against an output schema that exceeded their CPU or memory limit so far: %d",
                        self.killed,
                    )
                return False
            logger.warning("the process that checks output schemas exited with status %d", status)
        self.not_judged["no_process"] += 1
        return None

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
