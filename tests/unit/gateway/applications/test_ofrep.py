"""OpenFeature's Remote Evaluation Protocol over real HTTP, by hand and with OpenFeature's own SDK and provider."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import Reason

from promptrollout.gateway.process import Gateway
from tests.unit.gateway.applications.test_prompts import REPORTED
from tests.unit.gateway.kit import CANARY, STABLE, arm, counted, delivery
from tests.unit.gateway.pipeline.test_end_to_end import serving

TEMPLATE = [{"role": "system", "content": "You serve {{ company }}."}]
ACME = {"prompt_variables": {"company": "ACME"}}
FLAGS = "/ofrep/v1/evaluate/flags"
DEEP = b'{"a":' * 300 + b"1" + b"}" * 300
"""More than can be written again."""


@pytest.fixture
async def url(gateway: Gateway) -> AsyncIterator[str]:
    async with serving(gateway.serving_app) as found:
        yield found


@pytest.fixture
async def sdk(url: str) -> AsyncIterator[OpenFeatureClient]:
    """The SDK as an application has it."""
    provider = OFREPProvider(url)
    await asyncio.to_thread(api.set_provider, provider, "prompts")
    yield api.get_client("prompts")
    await asyncio.to_thread(api.shutdown)
    provider.session.close()


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as found:
        yield found


async def details(sdk: OpenFeatureClient, key: str, context: EvaluationContext | None = None) -> Any:
    return await asyncio.to_thread(sdk.get_object_details, key, {"default": True}, context)


async def test_the_sdk_gets_the_prompt_of_its_users_arm(gateway: Gateway, sdk: OpenFeatureClient) -> None:
    raw = delivery(weight=50, stable=arm(messages=TEMPLATE), canary=arm(CANARY, messages=TEMPLATE))
    await gateway.registry.apply("support", raw)
    found = await details(sdk, "support", EvaluationContext("0", ACME))
    assert (found.variant, found.reason, found.error_code) == ("canary", Reason.SPLIT, None)
    assert found.value == {
        "provider": "openai",
        "model": "gpt",
        "messages": [{"role": "system", "content": "You serve ACME."}],
        "parameters": {},
    }
    assert found.flag_metadata == {"version": CANARY[:10], "digest": f"sha256:{CANARY}", "rolloutUID": "uid-1"}
    stable = await details(sdk, "support", EvaluationContext("user-1", ACME))
    assert (stable.variant, stable.reason, stable.flag_metadata["version"]) == ("stable", Reason.SPLIT, STABLE[:10])
    keyless = await details(sdk, "support", EvaluationContext(attributes=ACME))
    assert (keyless.variant, keyless.reason) == ("stable", Reason.DEFAULT)


async def test_the_sdk_reads_our_errors(gateway: Gateway, sdk: OpenFeatureClient) -> None:
    await gateway.registry.apply("support", delivery(stable=arm(messages=TEMPLATE)))
    unknown = await details(sdk, "nobody", EvaluationContext("u"))
    assert (unknown.value, unknown.error_code) == ({"default": True}, ErrorCode.FLAG_NOT_FOUND)
    assert unknown.error_message == "this gateway serves no rollout 'nobody'; see GET /v1/models"
    unfilled = await details(sdk, "support", EvaluationContext("u"))
    assert (unfilled.value, unfilled.error_code) == ({"default": True}, ErrorCode.INVALID_CONTEXT)
    assert unfilled.error_message == "the prompt needs the variable 'company': set it in prompt_variables"
    mismatch = await asyncio.to_thread(sdk.get_string_details, "support", "x", EvaluationContext("u", ACME))
    assert mismatch.error_code == ErrorCode.TYPE_MISMATCH


async def test_the_sdks_context_is_what_audience_and_testers_look_at(gateway: Gateway, sdk: OpenFeatureClient) -> None:
    raw = delivery(
        weight=100,
        canary=arm(CANARY),
        audience={"include": [{"header": "X-Plan", "values": ["free"]}]},
        testers=[{"header": "x-team", "values": ["qa"]}],
    )
    await gateway.registry.apply("support", raw)

    async def found(**attributes: Any) -> tuple[str, Any]:
        said = await details(sdk, "support", EvaluationContext("u", attributes))
        return said.variant, said.reason

    assert await found() == ("stable", Reason.DEFAULT)
    assert await found(**{"X-Plan": "free"}) == ("canary", Reason.SPLIT)
    tester = {"x-team": "qa", "x-promptrollout-variant": "canary"}
    assert await found(**tester) == ("canary", Reason.TARGETING_MATCH)
    assert await found(**{**tester, "x-promptrollout-variant": "stable"}) == ("stable", Reason.TARGETING_MATCH)


async def test_an_evaluation_by_the_sdk_waits_for_its_report(
    gateway: Gateway, sdk: OpenFeatureClient, url: str, client: aiohttp.ClientSession
) -> None:
    await gateway.registry.apply("support", delivery(**REPORTED))
    found = await details(sdk, "support", EvaluationContext("u"))
    assert found.flag_metadata["cacheSeconds"] == 30
    report = {"token": found.flag_metadata["usageToken"], "outcome": "error"}
    async with client.post(f"{url}/v1/usage", json=report) as answer:
        assert (answer.status, await answer.json()) == (200, {"object": "usage", "counted": True})
    assert counted(gateway) == {"stable": (1, 1)}


@pytest.mark.parametrize(
    ("stickiness", "headers"),
    [
        ({"by": "User"}, {"x-user-id": "0"}),
        ({"by": "Conversation"}, {"x-conversation-id": "0"}),
        ({"by": "Header", "header": "X-Tenant"}, {"x-tenant": "0"}),
    ],
)
async def test_the_targeting_key_is_the_unit_that_requests_name_otherwise(
    gateway: Gateway, url: str, client: aiohttp.ClientSession, stickiness: dict[str, str], headers: dict[str, str]
) -> None:
    raw = delivery(weight=10, canary=arm(CANARY), stickiness=stickiness)
    await gateway.registry.apply("support", raw)
    async with client.post(f"{url}{FLAGS}/support", json={"context": {"targetingKey": "0"}}) as answer:
        assert (await answer.json())["variant"] == "canary"
    async with client.post(f"{url}/v1/prompts/support/render", json={}, headers=headers) as answer:
        assert (await answer.json())["variant"] == "canary"
    other = {"context": {"targetingKey": "user-1"}}
    async with client.post(f"{url}{FLAGS}/support", json=other, headers=headers) as answer:
        assert (await answer.json())["variant"] == "stable", "the context's word goes before the request's"


async def test_all_of_them_at_once_with_an_entity_tag(
    gateway: Gateway, url: str, client: aiohttp.ClientSession
) -> None:
    await gateway.registry.apply("support", delivery(weight=50, canary=arm(CANARY), **REPORTED))
    await gateway.registry.apply("other", delivery(rolloutUID="uid-2", stable=arm(messages=TEMPLATE)))

    async def ask(user: str, **headers: str) -> tuple[int, str, Any]:
        body = {"context": {"targetingKey": user}}
        async with client.post(f"{url}{FLAGS}", json=body, headers=headers) as answer:
            content = await answer.read()
            return answer.status, answer.headers["etag"], await answer.json() if content else None

    status, tag, found = await ask("0")
    assert (status, sorted(found)) == (200, ["flags"])
    by_key = {flag["key"]: flag for flag in found["flags"]}
    assert (by_key["support"]["variant"], by_key["support"]["reason"]) == ("canary", "SPLIT")
    assert "usageToken" not in by_key["support"]["metadata"]
    assert by_key["other"] == {
        "key": "other",
        "errorCode": "INVALID_CONTEXT",
        "errorDetails": "the prompt needs the variable 'company': set it in prompt_variables",
    }
    for wanted in (tag, f'"x", W/{tag}', "*"):
        assert await ask("0", **{"if-none-match": wanted}) == (304, tag, None)
    assert (await ask("user-1", **{"if-none-match": tag}))[0] == 200
    await gateway.registry.apply("support", delivery(2, stable=arm(CANARY), **REPORTED))
    status, changed, _ = await ask("0", **{"if-none-match": tag})
    assert (status, changed != tag) == (200, True)
    assert (counted(gateway), len(gateway.registry.renders)) == ({}, 0)


@pytest.mark.parametrize(
    ("path", "payload", "status", "body"),
    [
        (f"{FLAGS}/support", b"{", 400, {"key": "support", "errorCode": "PARSE_ERROR"}),
        (f"{FLAGS}/support", b"[]", 400, {"key": "support", "errorCode": "PARSE_ERROR"}),
        (f"{FLAGS}/support", b'{"context": 1}', 400, {"key": "support", "errorCode": "INVALID_CONTEXT"}),
        (f"{FLAGS}/support", b'{"context": {"targetingKey": 1}}', 400, {"errorCode": "INVALID_CONTEXT"}),
        (f"{FLAGS}/nobody", b"{}", 404, {"key": "nobody", "errorCode": "FLAG_NOT_FOUND"}),
        (f"{FLAGS}/support", b'{"context": {"messages": [1]}}', 400, {"errorCode": "INVALID_CONTEXT"}),
        (f"{FLAGS}/support", b'{"context": {"messages": [' + DEEP + b"]}}", 400, {"errorCode": "PARSE_ERROR"}),
        (FLAGS, b"{", 400, {"errorCode": "PARSE_ERROR"}),
        (FLAGS, b'{"context": {"prompt_variables": 1}}', 400, {"errorCode": "INVALID_CONTEXT"}),
        (FLAGS, b'{"context": {"messages": [' + DEEP + b"]}}", 400, {"errorCode": "PARSE_ERROR"}),
        (FLAGS, b'{"context": []}', 400, {"errorCode": "INVALID_CONTEXT"}),
    ],
)
async def test_errors_in_the_protocols_shape(
    gateway: Gateway,
    url: str,
    client: aiohttp.ClientSession,
    path: str,
    payload: bytes,
    status: int,
    body: dict[str, str],
) -> None:
    await gateway.registry.apply("support", delivery())
    async with client.post(f"{url}{path}", data=payload) as answer:
        found = await answer.json()
    assert answer.status == status
    assert found.items() >= body.items()
    assert found["errorDetails"]
    assert ("key" in found) == (path != FLAGS)


async def test_other_methods_and_sizes(gateway: Gateway, url: str, client: aiohttp.ClientSession) -> None:
    async with client.get(f"{url}{FLAGS}/support") as answer:
        assert (answer.status, (await answer.json())["errorCode"]) == (405, "GENERAL")
    async with client.post(f"{url}{FLAGS}", data=io.BytesIO(bytes(4 * 1024 * 1024 + 1))) as answer:
        assert (answer.status, (await answer.json())["errorCode"]) == (413, "GENERAL")
