"""Answers whose check may take for ever: the pod goes on, and the arm is charged."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import orjson
import pytest

from promptrollout.api.prompt import PromptSpec
from promptrollout.api.template import prompt_problems
from promptrollout.gateway.process import Gateway
from promptrollout.llm.answers.schema_process import MAX_WAITING, SchemaProcess
from tests.unit.gateway.kit import CANARY, Caller, Provider, arm, completion, delivery, request, says, series
from tests.unit.llm.answers.test_schema_visits import doubled, expression

ENDLESS = orjson.dumps(doubled(30))
UNION = orjson.dumps(expression("+", "*"))


@pytest.fixture
async def process() -> AsyncIterator[SchemaProcess]:
    made = SchemaProcess()
    yield made
    await made.close()


def worker(process: SchemaProcess) -> int:
    assert process._process is not None
    return process._process.pid


async def test_recursive_unions_are_judged(process: SchemaProcess) -> None:
    good = b'{"op":"+","left":1,"right":{"op":"*","left":2,"right":3}}'
    assert await process.matches(UNION, [good, b"1"]) is True
    assert await process.matches(UNION, [good, b'{"op":"-","left":1,"right":2}']) is False
    assert await process.matches(UNION, [b"no JSON"]) is False
    assert process.killed == 0


async def test_a_check_that_uses_up_its_time_is_a_failure_and_the_next_one_is_made(process: SchemaProcess) -> None:
    assert await process.matches(ENDLESS, [b"1"]) is False
    assert process.killed == 1
    assert await process.matches(UNION, [b"1"]) is True


async def test_a_worker_that_somebody_else_ended_says_nothing_of_the_answer(process: SchemaProcess) -> None:
    assert await process.matches(UNION, [b"1"]) is True
    os.kill(worker(process), signal.SIGKILL)
    assert await process.matches(UNION, [b"1"]) is True
    assert process.killed == 0


async def test_long_answers_have_more_time(process: SchemaProcess) -> None:
    lists = b"[" + b"[]," * 300_000 + b"[]]"
    assert await process.matches(UNION, [lists] * 4) is True
    assert process.killed == 0


async def test_what_cannot_be_compiled_is_not_judged(process: SchemaProcess) -> None:
    assert await process.matches(b'{"type": 1}', [b"1"]) is None


async def test_one_schema_does_not_keep_the_others_waiting(process: SchemaProcess) -> None:
    slow = [asyncio.create_task(process.matches(ENDLESS, [b"1"])) for _ in range(MAX_WAITING + 3)]
    await asyncio.sleep(0)
    assert await process.matches(UNION, [b"1"]) is True
    assert process.killed <= 2
    assert [await task for task in slow].count(None) == process.not_judged["too_many_waiting"] > 0


async def test_a_request_that_is_gone_is_not_checked(process: SchemaProcess) -> None:
    gone = asyncio.create_task(process.matches(ENDLESS, [b"1"]))
    await asyncio.sleep(0)
    gone.cancel()
    assert await process.matches(UNION, [b"1"]) is True


async def test_a_canary_whose_schema_doubles_its_time_at_each_level_fails_alone(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    """34 levels took a pod for minutes, and all its rollouts with it."""
    provider.script.extend([says(body=completion("1"))] * 2)
    await gateway.registry.apply("other", delivery(rolloutUID="uid-2", stable=arm(url=provider.url)))
    canary = arm(CANARY, provider.url, outputSchema=doubled(30))
    await gateway.registry.apply("support", delivery(weight=100, stable=arm(url=provider.url), canary=canary))
    answered, other = await asyncio.gather(caller.post(request()), caller.post(request(model="other")))
    assert (answered.status, other.status) == (200, 200)
    found = series(gateway, "canary").total
    assert (found.contract_checks, found.contract_failures) == (1, 1)


async def test_a_version_from_before_the_bounds_is_served_on(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    """What the operator would refuse today is in service since before: a pod that starts anew loads it."""
    told = "{{ a }}" * 1000
    messages = [{"role": "system", "content": told}]
    old = arm(url=provider.url, messages=messages, outputSchema={"anyOf": [{"$ref": "#"}, {"type": "object"}]})
    await gateway.registry.apply("support", delivery(stable=old))
    assert prompt_problems(PromptSpec.model_validate(old["prompt"]))
    provider.script.append(says(body=completion("{}")))
    answered = await caller.post(request(prompt_variables={"a": "x"}))
    assert answered.status == 200
    assert provider.requests[0]["messages"][0]["content"] == "x" * 1000
    found = series(gateway, "stable").total
    assert (found.contract_checks, found.contract_failures) == (1, 0)
