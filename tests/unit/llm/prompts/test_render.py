"""The version's prompt and the caller's request become the provider's request; the rest passes through untouched."""

from typing import Any

import pytest

from promptrollout.api.prompt import PromptSpec
from promptrollout.llm.errors import CallerError
from promptrollout.llm.prompts.prompt import SystemMessageRefused, compile_prompt
from promptrollout.llm.protocols.chat import CHAT, wants_usage
from tests.unit.gateway.kit import SCHEMA

OURS = {"role": "system", "content": "Ours for {{ who }}"}
USER = {"role": "user", "content": "Hi", "name": "n", "unknown": [1]}
SYSTEM = {"role": "system", "content": "Theirs"}


def filled(body: dict[str, Any], **prompt: Any) -> dict[str, Any]:
    spec = {"providerRef": {"name": "p"}, "model": "gpt", "messages": [OURS], **prompt}
    whole = {"model": "support", "prompt_variables": {"who": "you"}, **body}
    return CHAT.with_prompt(compile_prompt(PromptSpec.model_validate(spec)), whole)


def contents(request: dict[str, Any]) -> list[str]:
    return [message["content"] for message in request["messages"]]


def test_our_messages_come_first_and_variables_stay_here() -> None:
    request = filled({"messages": [USER]})
    assert request == {"model": "gpt", "messages": [{"role": "system", "content": "Ours for you"}, USER]}


def test_what_the_prompt_does_not_set_passes_through_untouched() -> None:
    body = {"messages": [USER], "temperature": 0.9, "logit_bias": {"5": -1}, "brand_new_field": {"a": [None, 1.5]}}
    request = filled(body, parameters={"maxTokens": 7})
    assert {name: request[name] for name in ("temperature", "logit_bias", "brand_new_field")} == {
        "temperature": 0.9,
        "logit_bias": {"5": -1},
        "brand_new_field": {"a": [None, 1.5]},
    }
    assert request["max_tokens"] == 7


def test_parameters_of_the_prompt_win_under_the_providers_names() -> None:
    parameters = {
        "temperature": "0.2",
        "topP": "0.9",
        "maxTokens": 400,
        "seed": 1,
        "presencePenalty": "-0.5",
        "frequencyPenalty": "0",
        "stop": ["END"],
        "extra": {"reasoning_effort": "low"},
    }
    request = filled({"temperature": 1.9, "max_completion_tokens": 5, "seed": 2}, parameters=parameters)
    assert "max_completion_tokens" not in request
    del request["messages"], request["model"]
    assert request == {
        "temperature": 0.2,
        "top_p": 0.9,
        "max_tokens": 400,
        "seed": 1,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.0,
        "stop": ["END"],
        "reasoning_effort": "low",
    }


def test_history_stands_where_its_placeholder_does() -> None:
    after = {"role": "user", "content": "Reminder"}
    request = filled({"messages": [USER]}, messages=[OURS, {"placeholder": "history"}, after])
    assert contents(request) == ["Ours for you", "Hi", "Reminder"]


@pytest.mark.parametrize("body", [{}, {"messages": None}, {"messages": []}])
def test_a_prompt_may_be_all_there_is(body: dict[str, Any]) -> None:
    assert contents(filled(body)) == ["Ours for you"]


def test_append_puts_the_callers_leading_system_messages_after_ours() -> None:
    example = {"role": "user", "content": "Example"}
    late = {"role": "developer", "content": "Late"}
    request = filled({"messages": [SYSTEM, USER, late]}, messages=[OURS, example])
    assert contents(request) == ["Ours for you", "Theirs", "Example", "Hi", "Late"]


def test_replace_drops_the_callers_system_messages() -> None:
    request = filled({"messages": [SYSTEM, USER, {**SYSTEM, "role": "developer"}]}, callerSystemMessage="Replace")
    assert contents(request) == ["Ours for you", "Hi"]


def test_a_placeholder_and_the_callers_system_messages_go_together() -> None:
    late = {"role": "developer", "content": "Late"}
    body = {"messages": [SYSTEM, USER, late]}
    after = {"role": "system", "content": "Reminder for {{ who }}"}
    messages = [OURS, {"role": "user", "content": "Example"}, {"placeholder": "history"}, after]
    appended = contents(filled(body, messages=messages))
    assert appended == ["Ours for you", "Theirs", "Example", "Hi", "Late", "Reminder for you"]
    replaced = contents(filled(body, messages=messages, callerSystemMessage="Replace"))
    assert replaced == ["Ours for you", "Example", "Hi", "Reminder for you"]
    first = [{"placeholder": "history"}, OURS]
    assert contents(filled(body, messages=first)) == ["Theirs", "Hi", "Late", "Ours for you"]


def test_text_of_the_history_and_of_variables_is_never_a_template() -> None:
    body = {"messages": [{"role": "user", "content": "{{ who }}"}], "prompt_variables": {"who": "{{ 7 * 7 }}"}}
    assert contents(filled(body)) == ["Ours for {{ 7 * 7 }}", "{{ who }}"]


def test_refuse_takes_no_system_message() -> None:
    with pytest.raises(SystemMessageRefused):
        filled({"messages": [SYSTEM]}, callerSystemMessage="Refuse")
    assert contents(filled({"messages": [USER]}, callerSystemMessage="Refuse")) == ["Ours for you", "Hi"]


def test_the_output_schema_is_asked_for_unless_the_caller_brings_one() -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "strict": False, "schema": SCHEMA}}
    assert filled({}, outputSchema=SCHEMA)["response_format"] == wanted
    for looser in ({"type": "json_object"}, {"type": "text"}, None):
        assert filled({"response_format": looser}, outputSchema=SCHEMA)["response_format"] == wanted
        assert filled({"response_format": looser})["response_format"] == looser
    own = {"type": "json_schema", "json_schema": {"name": "mine", "schema": {}}}
    assert filled({"response_format": own}, outputSchema=SCHEMA)["response_format"] == own
    ours = {"extra": {"response_format": {**own, "strict": True}}}
    assert filled({}, outputSchema=SCHEMA, parameters=ours)["response_format"] == {**own, "strict": True}


def test_tools_of_the_prompt_take_the_place_of_the_callers() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    assert filled({"tools": []}, tools=[tool])["tools"] == [tool]
    assert filled({"tools": [tool]})["tools"] == [tool]


def test_usage_of_streams_is_always_asked_for() -> None:
    body = {"stream": True, "stream_options": {"other": 1}}
    assert filled(body)["stream_options"] == {"other": 1, "include_usage": True}
    assert not wants_usage(body)
    assert "stream_options" not in filled({"stream": False})


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": {}}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"prompt_variables": []}, "prompt_variables"),
    ],
)
def test_malformed_fields_are_named(body: dict[str, Any], param: str) -> None:
    with pytest.raises(CallerError) as caught:
        filled(body)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_what_cannot_be_compiled_names_its_place() -> None:
    with pytest.raises(ValueError, match=r"^messages\[0\].content: line 1"):
        filled({}, messages=[{"role": "user", "content": "{{"}])
    with pytest.raises(ValueError, match=r"^outputSchema: not a JSON Schema"):
        filled({}, outputSchema={"type": "nonsense"})
