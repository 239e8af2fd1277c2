"""Prompts in requests of the Responses API: instructions, input, and what is left alone."""

from __future__ import annotations

from typing import Any

import pytest

from promptrollout.api.prompt import PromptSpec
from promptrollout.gateway.process import Gateway
from promptrollout.llm.errors import CallerError, Untranslatable
from promptrollout.llm.prompts.prompt import SystemMessageRefused, compile_prompt
from promptrollout.llm.protocols.responses import RESPONSES
from promptrollout.llm.translations import messages_response
from tests.unit.gateway.kit import SCHEMA, Caller, Provider, arm, delivery, says

OURS = [{"role": "system", "content": "Of {{ company }}."}]
EXAMPLE = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
HISTORY = {"placeholder": "history"}
HELLO = {"role": "user", "content": "Hello"}
SYSTEM = {"role": "developer", "content": "theirs"}


def filled(body: dict[str, Any], messages: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    spec = {"providerRef": {"name": "p"}, "model": "gpt", "messages": messages or OURS, **changes}
    prompt = compile_prompt(PromptSpec.model_validate(spec))
    given = {"model": "support", "prompt_variables": {"company": "ACME"}, **body}
    return RESPONSES.with_prompt(prompt, given)


def test_our_system_messages_are_instructions_and_a_text_stays_a_text() -> None:
    assert filled({"input": "Hello"}) == {"model": "gpt", "instructions": "Of ACME.", "input": "Hello"}
    more = [*OURS, {"role": "developer", "content": "Brief."}]
    assert filled({"input": "Hello"}, more)["instructions"] == "Of ACME.\n\nBrief."


def test_our_other_messages_are_items_around_the_callers() -> None:
    after = {"role": "system", "content": "Remember."}
    found = filled({"input": "Hello"}, [*OURS, *EXAMPLE, HISTORY, after])
    assert (found["instructions"], found["input"]) == ("Of ACME.", [*EXAMPLE, HELLO, after])
    found = filled({"input": [HELLO]}, [*EXAMPLE, HISTORY])
    assert ("instructions" in found, found["input"]) == (False, [*EXAMPLE, HELLO])


@pytest.mark.parametrize("state", [{"previous_response_id": "resp_1"}, {"conversation": "conv_1"}])
def test_what_the_provider_remembers_is_not_said_again(state: dict[str, Any]) -> None:
    found = filled({"input": "Hello", **state}, [*OURS, *EXAMPLE])
    assert (found["instructions"], found["input"]) == ("Of ACME.", "Hello")
    assert state.items() <= found.items()


def test_reasoning_that_was_translated_is_not_sent_where_nobody_knows_it() -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    told = messages_response.answer({"id": "msg_1", "content": [thought]}, {})["output"]
    assert [item["type"] for item in told] == ["reasoning"]
    own = {"type": "reasoning", "id": "rs_1", "summary": []}
    given = [HELLO, own, *told, HELLO]
    assert filled({"input": given})["input"] == [HELLO, own, HELLO]
    assert len(given) == 4, "the caller's request is left as it is"


def test_the_callers_instructions_go_where_the_prompt_wants_them() -> None:
    given = {"instructions": "theirs", "input": [SYSTEM, HELLO]}
    found = filled(given)
    assert (found["instructions"], found["input"]) == ("Of ACME.\n\ntheirs", [SYSTEM, HELLO])
    found = filled(given, callerSystemMessage="Replace")
    assert (found["instructions"], found["input"]) == ("Of ACME.", [HELLO])
    for refused in (given, {"input": [SYSTEM]}, {"instructions": "x", "input": "Hello"}):
        with pytest.raises(SystemMessageRefused):
            filled(refused, callerSystemMessage="Refuse")
    assert filled({"input": "Hello"}, callerSystemMessage="Refuse")["input"] == "Hello"
    found = filled(given, [*OURS, *EXAMPLE])
    assert found["input"] == [SYSTEM, *EXAMPLE, HELLO], "their leading ones stay in front"


def test_the_versions_parameters_and_tools_win_under_this_apis_names() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    body = {"input": "Hello", "temperature": 1, "max_output_tokens": 9, "tools": [{"type": "web_search"}]}
    parameters = {"temperature": "0.2", "maxTokens": 5, "extra": {"reasoning": {"effort": "low"}}}
    found = filled(body, parameters=parameters, tools=[tool])
    assert (found["temperature"], found["max_output_tokens"]) == (0.2, 5)
    assert found["tools"] == [{"type": "function", "name": "f", "parameters": {"type": "object"}}]
    assert found["reasoning"] == {"effort": "low"}


def test_the_answers_schema_is_asked_for_unless_the_caller_brings_one() -> None:
    wanted = {"type": "json_schema", "name": "answer", "strict": False, "schema": SCHEMA}
    assert filled({"input": "x"}, outputSchema=SCHEMA)["text"] == {"format": wanted}
    verbose = filled({"input": "x", "text": {"verbosity": "low"}}, outputSchema=SCHEMA)["text"]
    assert verbose == {"verbosity": "low", "format": wanted}
    for looser in ("text", "json_object"):
        asked: Any = {"input": "x", "text": {"format": {"type": looser}}}
        assert filled(asked, outputSchema=SCHEMA)["text"] == {"format": wanted}
    brief = {"extra": {"text": {"verbosity": "low"}}}
    assert filled({"input": "x"}, outputSchema=SCHEMA, parameters=brief)["text"] == {
        "verbosity": "low",
        "format": wanted,
    }
    own = {"format": {"type": "json_schema", "name": "mine", "schema": {}}}
    assert filled({"input": "x", "text": own}, outputSchema=SCHEMA)["text"] == own
    assert RESPONSES.leaves_format({"text": own}) is False
    assert RESPONSES.leaves_format({"text": {"verbosity": "low"}}) is True


@pytest.mark.parametrize("name", ["seed", "stop", "presencePenalty"])
def test_a_parameter_that_this_api_has_not_is_named(name: str) -> None:
    value: Any = {"seed": 1, "stop": ["x"], "presencePenalty": "0.5"}[name]
    with pytest.raises(Untranslatable) as caught:
        filled({"input": "x"}, parameters={name: value})
    assert caught.value.param == f"parameters.{name}"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": 7}, "input"),
        ({"input": ["x"]}, "input[0]"),
        ({"input": "x", "instructions": ["x"]}, "instructions"),
        ({"input": "x", "background": True}, "background"),
    ],
)
def test_a_bad_request_names_the_field(body: dict[str, Any], param: str) -> None:
    with pytest.raises(CallerError) as caught:
        filled(body)
    assert (caught.value.status, caught.value.param) == (400, param)


async def test_unknown_fields_and_the_answer_pass_through_untouched(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    await gateway.registry.apply("support", delivery(stable=arm(url=provider.url)))
    said = b'{"id":"r","status":"completed","output":[{"type":"odd_call"}], "odd": 1.0e3}'
    provider.script.append(says(body=said))
    body = {"model": "support", "input": "Hello", "user": "u", "include": ["x"], "of_next_year": {"a": [None, "ü"]}}
    answered = await caller.post(body, path="/v1/responses")
    assert (answered.status, answered.body, provider.paths) == (200, said, ["/v1/responses"])
    assert provider.requests == [{**body, "model": "gpt", "instructions": "You are a."}]
