"""Prompts in requests of Anthropic's API, and what its providers are sent beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from promptrollout.api.prompt import PromptSpec
from promptrollout.gateway.process import Gateway
from promptrollout.gateway.rollouts.load_errors import LoadError
from promptrollout.llm.errors import CallerError
from promptrollout.llm.prompts.prompt import SystemMessageRefused, compile_prompt
from promptrollout.llm.protocols.messages import DEFAULT_MAX_TOKENS, MESSAGES
from tests.unit.gateway.kit import (
    CANARY,
    KEY,
    SCHEMA,
    Caller,
    Provider,
    Samples,
    arm,
    counted,
    delivery,
    samples,
    says,
    series,
    streams,
)

CLOSED = {**SCHEMA, "additionalProperties": False}
OURS = [{"role": "system", "content": "Of {{ company }}."}]
EXAMPLE = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
HELLO = {"role": "user", "content": "Hello"}
ANSWER = {
    "id": "msg_1",
    "type": "message",
    "content": [{"type": "text", "text": "Hi"}],
    "stop_reason": "end_turn",
    "usage": {
        "input_tokens": 10,
        "cache_creation_input_tokens": 30,
        "cache_read_input_tokens": 60,
        "output_tokens": 5,
    },
}


def filled(body: dict[str, Any], messages: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    spec = {"providerRef": {"name": "p"}, "model": "claude", "messages": messages or OURS, **changes}
    prompt = compile_prompt(PromptSpec.model_validate(spec))
    given = {"model": "support", "max_tokens": 9, "prompt_variables": {"company": "ACME"}, "messages": [HELLO], **body}
    return MESSAGES.with_prompt(prompt, given)


def test_our_system_messages_are_the_system_prompt_wherever_they_stand() -> None:
    assert filled({}) == {"model": "claude", "max_tokens": 9, "system": "Of ACME.", "messages": [HELLO]}
    around = [*OURS, *EXAMPLE, {"placeholder": "history"}, {"role": "developer", "content": "Brief."}, EXAMPLE[0]]
    found = filled({}, around)
    assert found["system"] == "Of ACME.\n\nBrief."
    assert found["messages"] == [*EXAMPLE, HELLO, EXAMPLE[0]]
    assert "system" not in filled({}, EXAMPLE)


def test_the_callers_system_prompt_goes_where_the_prompt_wants_it() -> None:
    assert filled({"system": "theirs"})["system"] == "Of ACME.\n\ntheirs"
    block = {"type": "text", "text": "theirs", "cache_control": {"type": "ephemeral"}}
    assert filled({"system": [block]})["system"] == [{"type": "text", "text": "Of ACME."}, block]
    assert filled({"system": [block]}, callerSystemMessage="Replace")["system"] == "Of ACME."
    with pytest.raises(SystemMessageRefused):
        filled({"system": "theirs"}, callerSystemMessage="Refuse")


def test_a_callers_system_messages_among_the_turns_go_where_the_prompt_wants_them_too() -> None:
    turns = [HELLO, {"role": "system", "content": "theirs"}]
    assert filled({"messages": turns})["messages"] == turns
    assert filled({"messages": turns}, callerSystemMessage="Replace")["messages"] == [HELLO]
    with pytest.raises(SystemMessageRefused):
        filled({"messages": turns}, callerSystemMessage="Refuse")
    with pytest.raises(CallerError) as caught:
        filled({"system": 7})
    assert caught.value.param == "system"


def test_the_limit_on_tokens_is_the_versions_else_the_callers_else_a_default() -> None:
    assert filled({}, parameters={"maxTokens": 5})["max_tokens"] == 5
    assert filled({})["max_tokens"] == 9
    assert filled({"max_tokens": None})["max_tokens"] == DEFAULT_MAX_TOKENS == 4096


def test_the_versions_parameters_and_tools_are_said_as_anthropic_has_them() -> None:
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    tools = [{"type": "function", "function": function}, {"name": "g", "input_schema": {"type": "object"}}]
    found = filled({"of_next_year": 1}, parameters={"temperature": "0.5", "topP": "0.9", "stop": ["x"]}, tools=tools)
    assert (found["temperature"], found["top_p"], found["stop_sequences"]) == (0.5, 0.9, ["x"])
    assert found["tools"] == [{"name": "f", "description": "d", "input_schema": {"type": "object"}}, tools[1]]
    assert found["of_next_year"] == 1


def test_the_versions_output_schema_is_asked_for_where_the_caller_leaves_the_format_to_it() -> None:
    asked = {"type": "json_schema", "schema": {**SCHEMA, "additionalProperties": False}}
    assert filled({}, outputSchema=SCHEMA)["output_config"] == {"format": asked}
    found = filled({"output_config": {"effort": "low"}}, outputSchema=SCHEMA)
    assert found["output_config"] == {"effort": "low", "format": asked}
    theirs = {"format": {"type": "json_schema", "schema": {"type": "string"}}}
    assert filled({"output_config": theirs}, outputSchema=SCHEMA)["output_config"] == theirs
    assert "output_config" not in filled({"output_format": theirs["format"]}, outputSchema=SCHEMA)
    assert "output_config" not in filled({})


def test_the_version_may_say_otherwise_of_its_output_schema() -> None:
    ours = {"format": {"type": "json_schema", "schema": {"type": "integer"}}}
    found = filled({}, outputSchema=SCHEMA, parameters={"extra": {"output_config": ours}})
    assert found["output_config"] == ours
    found = filled({}, outputSchema=SCHEMA, parameters={"extra": {"output_config": {"effort": "low"}}})
    assert found["output_config"]["effort"] == "low"
    assert found["output_config"]["format"]["type"] == "json_schema"
    none = {"outputSchema": SCHEMA, "parameters": {"extra": {"output_config": {}}}}
    assert "output_config" not in filled({}, **none)
    assert filled({"output_config": {"effort": "low"}}, **none)["output_config"] == {"effort": "low"}


def test_no_form_is_asked_of_an_answer_whose_beginning_is_given_or_which_has_no_such_form() -> None:
    begun = [*OURS, {"placeholder": "history"}, {"role": "assistant", "content": "{"}]
    assert "output_config" not in filled({}, begun, outputSchema=SCHEMA), "Anthropic refuses the two together"
    assert "output_config" not in filled({"messages": [HELLO, EXAMPLE[1]]}, outputSchema=SCHEMA)
    assert "output_config" not in filled({}, outputSchema={"type": "object"}), "closed, it would be {} alone"


def test_a_caller_who_asks_for_another_format_is_not_judged_by_ours() -> None:
    assert MESSAGES.leaves_format({"output_config": {"effort": "low"}}) is True
    assert MESSAGES.leaves_format({"output_config": {"format": {"type": "json_schema"}}}) is False


async def anthropic(gateway: Gateway, provider: Provider, **changes: Any) -> None:
    made = arm(url=provider.url, provider_type="Anthropic", **changes)
    await gateway.registry.apply("support", delivery(stable=made))


def total_counted(found: Samples) -> float:
    names = (
        "requests",
        "errors",
        "abandoned_requests",
        "unassigned_requests",
        "diverted_requests",
        "usage_missing_requests",
    )
    series = (found[f"promptrollout_{name}_total"] for name in names)
    return sum(sum(each.values()) for each in series)


async def test_tokens_are_counted_of_the_users_own_prompt_and_for_no_arm(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    arms = {
        digest: arm(digest, provider.url, provider_type="Anthropic", outputSchema=CLOSED, parameters={"maxTokens": 50})
        for digest in ("a" * 64, CANARY)
    }
    made = {"stable": arms["a" * 64], "canary": arms[CANARY]}
    await gateway.registry.apply("support", delivery(weight=100, responseKey=KEY, **made))
    tool = {"name": "f", "input_schema": {"type": "object"}}
    asked = {**ASKED, "stream": True, "temperature": 0.5, "tools": [tool], "of_next_year": 1}
    provider.script.append(says(body={"input_tokens": 42}))
    answered = await caller.post(asked, "/v1/messages/count_tokens", {"anthropic-beta": "b"})
    assert (answered.status, answered.json) == (200, {"input_tokens": 42})
    assert answered.headers["x-promptrollout-variant"] == "canary"
    provider.script.append(says(body=ANSWER))
    await caller.post({**asked, "stream": False}, "/v1/messages")
    counting, message = provider.requests
    assert provider.paths == ["/v1/messages/count_tokens", "/v1/messages"]
    assert provider.headers[0]["anthropic-beta"] == "b"
    assert "output_config" in counting
    assert counting["of_next_year"] == 1
    assert counting.items() <= message.items()
    assert message.keys() - counting.keys() == {"max_tokens", "metadata", "stream", "temperature"}
    assert counted(gateway) == {"canary": (1, 0)}, "the message"


async def test_counting_tokens_in_vain_is_nobodys_failure(gateway: Gateway, caller: Caller, provider: Provider) -> None:
    own, other = arm(provider_type="Anthropic", url=provider.url), arm(CANARY, "http://127.0.0.1:1/v1")
    await gateway.registry.apply(
        "support", delivery(stable=own, canary={**other, "provider": own["provider"]}, weight=0)
    )
    before = total_counted(await samples(gateway))
    for script in [says(529, {"error": {"message": "later"}}), says(body={"no": "tokens"}), streams(b"data: {}\n\n")]:
        provider.script.extend([script] * 3)
    statuses = [
        (await caller.post(asked, "/v1/messages/count_tokens")).status
        for asked in [ASKED, ASKED, {**ASKED, "metadata": {}}, ASKED, ASKED]
    ]
    assert all(status >= 500 for status in statuses)
    provider.script.clear()
    provider.script.extend([says(503, {})] * 300)
    for _ in range(30):
        await caller.post(ASKED, "/v1/messages/count_tokens")
    serving = gateway.registry.find("support")
    assert serving is not None
    assert (serving.stable.circuit.state, serving.stable.circuit.unreachable) == ("Closed", False)
    assert total_counted(await samples(gateway)) == before == 0


async def test_a_provider_that_counts_no_tokens_is_said_to_and_no_other_counts_instead(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    stable, canary = arm(url=provider.url, provider_type="Anthropic"), arm(CANARY, provider.url)
    await gateway.registry.apply("support", delivery(weight=100, stable=stable, canary=canary))
    refused = await caller.post(ASKED, "/v1/messages/count_tokens")
    assert (refused.status, refused.error["type"]) == (404, "not_found_error")
    assert "OpenAI's API" in refused.error["message"]
    assert provider.requests == []
    assert counted(gateway) == {}


ASKED = {"model": "support", "max_tokens": 9, "metadata": {"user_id": "u"}, "messages": [HELLO]}


async def test_a_provider_gets_its_key_the_version_and_the_callers_betas(
    gateway: Gateway, caller: Caller, provider: Provider, tmp_path: Path
) -> None:
    key = tmp_path / "keys" / "openai" / "api-key"
    key.parent.mkdir(parents=True)
    key.write_text("sk-ant-1\n")
    await anthropic(gateway, provider, provider_needsKey=True)
    provider.script.extend([says(body=ANSWER)] * 3)
    theirs = {"x-api-key": "of-the-caller", "authorization": "Bearer of-the-caller"}
    await caller.post(ASKED, path="/v1/messages", headers=theirs)
    own = {"anthropic-version": "2024-01-01", "anthropic-beta": "a,b"}
    await caller.post(ASKED, path="/v1/messages", headers=own)
    await caller.post({"model": "support", "user": "u", "messages": [HELLO]}, headers=own)
    assert provider.paths == ["/v1/messages"] * 3
    sent = provider.headers
    assert [one["x-api-key"] for one in sent] == ["sk-ant-1"] * 3
    assert not any("authorization" in one for one in sent)
    assert [one["anthropic-version"] for one in sent] == ["2023-06-01", "2024-01-01", "2023-06-01"]
    assert [one.get("anthropic-beta") for one in sent] == [None, "a,b", None]
    assert counted(gateway) == {"stable": (3, 0)}


async def test_what_is_read_from_and_written_to_the_cache_is_input(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    price = {
        "model": "gpt",
        "inputPerMillionUsd": "1",
        "outputPerMillionUsd": "4",
        "cachedInputPerMillionUsd": "0.1",
        "cacheWritePerMillionUsd": "1.5",
    }
    await anthropic(gateway, provider, provider_price=price)
    provider.script.append(says(body=ANSWER, **{"request-id": "r1", "anthropic-organization-id": "o"}))
    answered = await caller.post(ASKED, path="/v1/messages")
    assert answered.json == ANSWER
    assert answered.headers["request-id"] == "r1"
    assert "anthropic-organization-id" not in answered.headers
    total = series(gateway, "stable").total
    assert (total.input_tokens, total.cached_input_tokens) == (100, 60)
    assert total.cost_sum_usd == pytest.approx(10e-6 + 45e-6 + 6e-6 + 20e-6)


@pytest.mark.parametrize("text", ['{"answer":"x"}', "no JSON"])
async def test_an_answer_in_the_form_that_was_asked_for_is_held_against_the_schema(
    gateway: Gateway, caller: Caller, provider: Provider, text: str
) -> None:
    await anthropic(gateway, provider, outputSchema=SCHEMA)
    provider.script.append(says(body={**ANSWER, "content": [{"type": "text", "text": text}]}))
    assert (await caller.post(ASKED, path="/v1/messages")).status == 200
    assert provider.requests[0]["output_config"]["format"]["schema"]["required"] == ["answer"]
    total = series(gateway, "stable").total
    assert (total.contract_checks, total.contract_failures) == (1, int(text == "no JSON"))


async def test_a_version_that_anthropic_cannot_be_told_is_found_when_it_is_loaded(
    gateway: Gateway, provider: Provider
) -> None:
    await anthropic(gateway, provider, parameters={"seed": 1})
    assert gateway.registry.find("support") is None
    canary = arm(CANARY, provider.url, provider_type="Anthropic", tools=[{"type": "web_search"}])
    await gateway.registry.apply("support", delivery(2, stable=arm(url=provider.url), canary=canary))
    serving = gateway.registry.find("support")
    assert serving is not None
    assert serving.canary is None
    problem = serving.configuration.canary_problem
    assert isinstance(problem, LoadError)
    assert str(problem) == (
        "canary.prompt.tools[0]: Anthropic's API supports only functions, or tools in its own format"
    )


async def test_a_request_that_cannot_be_translated_counts_for_nobody(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await anthropic(gateway, provider)
    answered = await caller.post({"model": "support", "user": "u", "messages": [HELLO], "seed": 1})
    assert (answered.status, answered.error["code"], answered.error["param"]) == (400, "untranslatable", "seed")
    assert answered.error["message"] == "seed: Anthropic's API does not support it"
    asked = {"model": "support", "input": "Hello", "previous_response_id": "resp_1"}
    answered = await caller.post(asked, path="/v1/responses")
    assert (answered.status, answered.error["code"]) == (400, "untranslatable")
    assert answered.error["param"] == "previous_response_id"
    assert "does not store conversations: send the earlier items instead" in answered.error["message"]
    assert (counted(gateway), provider.requests) == ({}, [])
