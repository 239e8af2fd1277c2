"""Whatever JSON comes in: requests are filled or refused by name, answers and streams are read or are none."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from promptrollout.api.prompt import PromptSpec
from promptrollout.llm.answers.streams import StreamError
from promptrollout.llm.errors import CallerError, PrepareError
from promptrollout.llm.prompts.prompt import CompiledPrompt, compile_prompt
from promptrollout.llm.protocols import BY_NAME
from promptrollout.llm.providers import KINDS
from promptrollout.llm.translations import TRANSLATIONS

WORDS = (  # noqa: SIM905
    "text image image_url file document tool_use tool_result thinking refusal url base64 auto any tool none "
    "function user assistant system developer json_schema json_object stop length tool_calls end_turn max_tokens "
    "message function_call output_text content_block_start content_block_delta content_block_stop message_start "
    "message_delta message_stop text_delta input_json_delta thinking_delta error response.completed response.failed "
    "input_text input_image input_file function_call_output reasoning "
    "response.output_text.delta response.output_item.added {} [1] data:application/pdf;base64,AA "
).split()
NAMES = (  # noqa: SIM905
    "type role content messages input instructions system tools tool_choice function name arguments id index delta "
    "choices message finish_reason stop_reason usage prompt_tokens completion_tokens input_tokens output_tokens "
    "prompt_tokens_details input_tokens_details cached_tokens cache_read_input_tokens error response output item "
    "content_block partial_json source media_type data url image_url file file_data filename title tool_calls "
    "tool_call_id tool_use_id text refusal thinking output_config format schema effort metadata user_id "
    "call_id output file_id file_url input_text conversation previous_response_id include verbosity summary "
    "response_format json_schema stop stop_sequences stream stream_options include_usage incomplete_details reason "
    "status parallel_tool_calls disable_parallel_tool_use max_tokens temperature reasoning_effort prompt_variables "
).split()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**40) | st.floats(allow_nan=False) | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), inner, max_size=5)
    ),
    max_leaves=25,
)
OBJECT = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), JSON, max_size=6)
BLOCK = OBJECT | st.builds(lambda kind, rest: {**rest, "type": kind}, st.sampled_from(WORDS), OBJECT)
MESSAGE = st.builds(
    lambda role, content, rest: {**rest, "role": role, "content": content},
    st.sampled_from(["system", "user", "assistant", "tool"]),
    st.text(max_size=5) | st.lists(BLOCK, max_size=3),
    st.dictionaries(st.sampled_from(["tool_calls", "tool_call_id", "refusal"]), JSON, max_size=2),
)
REQUEST = OBJECT | st.builds(
    lambda messages, rest: {**rest, "messages": messages, "input": messages},
    st.lists(MESSAGE, min_size=1, max_size=4),
    OBJECT,
)


def prompt() -> CompiledPrompt:
    roles = ["system", "user", "assistant"]
    messages: list[dict[str, Any]] = [{"role": role, "content": "Hi {{ name }}"} for role in roles]
    spec = {
        "providerRef": {"name": "p"},
        "model": "m",
        "messages": [*messages, {"placeholder": "history"}, {"role": "user", "content": "Now."}],
        "outputSchema": {"type": "object"},
    }
    return compile_prompt(PromptSpec.model_validate(spec))


PROMPT = prompt()


@settings(max_examples=150, deadline=None)
@given(REQUEST)
def test_a_request_becomes_a_providers_or_is_refused(body: dict[str, Any]) -> None:
    before = orjson.dumps(body)
    for name in BY_NAME:
        for kind in KINDS.values():
            for native in kind.paths:
                translation = TRANSLATIONS.get((name, native))
                if name != native and translation is None:
                    continue
                try:
                    asked = body if translation is None else translation.request(body)
                    filled = BY_NAME[native].with_prompt(PROMPT, asked)
                    BY_NAME[native].leaves_format(asked)
                except (CallerError, PrepareError):
                    continue
                finally:
                    assert orjson.dumps(body) == before, "the caller's request is left as it is"
                orjson.dumps(filled)
                assert filled["model"] == "m"
                assert "prompt_variables" not in filled


@settings(max_examples=150, deadline=None)
@given(OBJECT, st.lists(BLOCK, max_size=3))
def test_an_answer_is_read_and_told_or_is_none(answer: dict[str, Any], blocks: list[Any]) -> None:
    for name, protocol in BY_NAME.items():
        for given_answer in (answer, {**answer, "content": blocks, "output": blocks, "choices": blocks}):
            whole = protocol.read(orjson.dumps(given_answer))
            if whole is None:
                continue
            for (_, native), translation in TRANSLATIONS.items():
                if native == name:
                    try:
                        orjson.dumps(translation.answer(whole.body, {}))
                    except ValueError:
                        continue


@settings(max_examples=150, deadline=None)
@given(st.lists(BLOCK | st.builds(lambda choice: {"choices": [choice]}, BLOCK), max_size=6))
def test_a_stream_is_read_and_told_or_is_none(events: list[dict[str, Any]]) -> None:
    sent = b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in events)
    for native in ("chat", "responses", "messages"):
        told = [None, *(each for (_, spoken), each in TRANSLATIONS.items() if spoken == native)]
        for translation in told:
            reader = BY_NAME[native].reader({}, collect_content=True)
            if translation is not None:
                reader.translator = translation.stream({"stream": True})
            try:
                reader.feed(sent)
                reader.finish()
            except StreamError:
                continue
            for choice in reader.choices():
                assert isinstance(choice.content, str)
