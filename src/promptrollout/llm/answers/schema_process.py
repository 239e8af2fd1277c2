"""Has answers held against schemas whose time nobody knows, in one process beside this: the validator keeps Python's
interpreter lock, so that a thread of this process would stop everything else."""

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
"""Of one schema. More would hold places that other rollouts' requests need: those answers are not judged."""
PATIENCE_SECONDS: Final = 10.0
"""By the clock, for a check: a worker that gets no CPU has said nothing about the answer."""
_LOGGED_EACH: Final = 100
_FAULTS_OF_THE_ANSWER: Final = frozenset({-signal.SIGPROF, -signal.SIGSEGV, -signal.SIGABRT})
"""It used up its time, its stack or its memory."""


class SchemaProcess:
    """Starts the worker when it is first needed, and again after it ended. One check at a time; schemas take turns, so
    that one which uses up its time does not keep the others waiting for longer than that."""

    def __init__(self, not_judged: Counter[str] | None = None) -> None:
        self._waiting: OrderedDict[bytes, deque[tuple[bytes, asyncio.Future[bool | None]]]] = OrderedDict()
        self._process: Process | None = None
        self._turns: asyncio.Task[None] | None = None
        self.killed = 0
        """Checks that ended the worker."""
        self.not_judged: Counter[str] = Counter() if not_judged is None else not_judged
        """Answers, by why (NOT_JUDGED)."""

    async def matches(self, schema: bytes, texts: list[bytes]) -> bool | None:
        """Whether all are JSON that matches. False too where that takes more than 100 ms of CPU; None: not judged."""
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
            asked, verdict = queue.popleft() if queue else (b"", None)
            if queue:
                self._waiting[schema] = queue
            if verdict is None or verdict.done():  # its request is gone
                continue
            try:
                found = await self._ask(asked)
            except Exception:  # no process can be started; or a fault of ours, for which nobody shall wait for ever
                logger.exception("the process that checks output schemas cannot be used")
                await self._end()
                self.not_judged["no_process"] += 1
                found = None
            if not verdict.done():
                verdict.set_result(found)

    async def _ask(self, asked: bytes) -> bool | None:
        """A worker that somebody else ended is tried once more. Raises OSError where none can be started."""
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
                    process.stdin.write(asked)
                    answer = await process.stdout.read(1)
            except TimeoutError:
                logger.warning("an output schema was not checked: no answer within %d s", PATIENCE_SECONDS)
                await self._end()
                self.not_judged["no_cpu"] += 1
                return None
            if answer:
                if answer == NOT_COMPILED:
                    logger.error("an output schema cannot be compiled: its answers are not checked")
                    self.not_judged["not_compiled"] += 1
                    return None
                return answer == KEPT
            status = await process.wait()
            self._process = None
            if status in _FAULTS_OF_THE_ANSWER:
                self.killed += 1
                if self.killed % _LOGGED_EACH == 1:
                    logger.warning("checks of answers against their output schema used up their time: %d", self.killed)
                return False
            logger.warning("the process that checks output schemas ended with status %d", status)
        self.not_judged["no_process"] += 1
        return None

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
