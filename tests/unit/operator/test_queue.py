"""The work queue: one key, one worker, and nothing that was marked is lost."""

import asyncio

from promptrollout.operator.cluster.queue import BACKOFF_MAX_SECONDS, Key, WorkQueue

A, B = Key("PromptRollout", "ns", "a"), Key("PromptRollout", "ns", "b")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_a_key_that_is_marked_often_is_handed_out_once() -> None:
    queue = WorkQueue()
    for key in (A, B, A, A):
        queue.add(key)
    assert [await queue.get(), await queue.get()] == [A, B]
    assert queue.depth == 0


async def test_a_key_is_never_with_two_workers_and_comes_again_if_marked_meanwhile() -> None:
    queue = WorkQueue()
    queue.add(A)
    assert await queue.get() == A
    queue.add(A)
    assert queue.depth == 0
    queue.done(A)
    assert await queue.get() == A
    queue.done(A)
    assert queue.depth == 0


async def test_of_several_times_the_earliest_counts() -> None:
    clock = Clock()
    queue = WorkQueue(clock)
    queue.add_after(A, 30)
    queue.add_after(A, 5)
    queue.add_after(A, 60)
    clock.now += 5
    queue.ripen()
    assert queue.depth == 1
    assert await queue.get() == A
    queue.done(A)
    clock.now += 100
    queue.ripen()
    assert queue.depth == 0


async def test_a_reconcile_replaces_the_time_that_the_one_before_it_set() -> None:
    clock = Clock()
    queue = WorkQueue(clock)
    queue.next_at(A, 5)
    queue.next_at(A, 30)
    clock.now += 29
    queue.ripen()
    assert queue.depth == 0
    clock.now += 1
    queue.ripen()
    assert queue.depth == 1


async def test_pauses_double_until_a_success() -> None:
    clock = Clock()
    queue = WorkQueue(clock)
    pauses = [queue.retry(A) for _ in range(12)]
    assert pauses[:3] == [0.1, 0.2, 0.4]
    assert pauses[-1] == BACKOFF_MAX_SECONDS
    queue.forget(A)
    assert queue.retry(A) == 0.1


async def test_what_failed_comes_at_once_when_its_reason_is_gone() -> None:
    queue = WorkQueue(Clock())
    for _ in range(9):
        queue.retry(A)
    queue.retry_failed_now()
    assert await queue.get() == A


async def test_a_waiting_worker_is_woken() -> None:
    queue = WorkQueue()
    worker = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add(A)
    assert await worker == A


async def test_workers_end_when_the_queue_is_closed() -> None:
    queue = WorkQueue()
    workers = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    queue.close()
    # closing wakes one; each that ends must not leave the others asleep
    assert await asyncio.wait_for(asyncio.gather(*workers), 1) == [None, None, None]
    queue.add(A)
    assert queue.depth == 0


async def test_the_lag_is_that_of_the_oldest_key() -> None:
    clock = Clock()
    queue = WorkQueue(clock)
    queue.add(A)
    clock.now += 7
    queue.add(B)
    assert queue.lag_seconds == 7


async def test_a_thousand_keys_of_one_namespace_keep_no_other_waiting() -> None:
    queue = WorkQueue()
    for number in range(1000):
        queue.add(Key("PromptRollout", "crowd", str(number)))
    queue.add(A)
    taken = [await queue.get() for _ in range(2)]
    assert A in taken
    assert queue.depth == 999
