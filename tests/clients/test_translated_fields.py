"""The SDKs' own types of requests: each field stands in the tables of what is translated, dropped or refused."""

from __future__ import annotations

from typing import Any, get_type_hints

import pytest
from typing_extensions import is_typeddict

from promptrollout.llm.protocols.count_tokens import ONLY_TO_ANSWER
from tests.clients.kit import ABSENT
from tests.unit.llm.translations.test_translated_fields import OF_ANTHROPIC, OF_CHAT, OF_RESPONSES, Kind


def types(module: str) -> Any:
    return pytest.importorskip(module, reason=ABSENT)


messages = types("anthropic.types")
messages_request = types("anthropic.types.message_create_params")
chat = types("openai.types.chat")
chat_image = types("openai.types.chat.chat_completion_content_part_image_param")
chat_parts = types("openai.types.chat.chat_completion_content_part_param")
chat_call = types("openai.types.chat.chat_completion_message_function_tool_call_param")
chat_request = types("openai.types.chat.completion_create_params")
responses = types("openai.types.responses")
responses_request = types("openai.types.responses.response_create_params")
response_items = types("openai.types.responses.response_input_item_param")
shared = types("openai.types.shared_params")
chat_schema = types("openai.types.shared_params.response_format_json_schema")

OF_FILES = ("file", "file by its URL")
TYPES: list[tuple[Any, dict[str, Kind], tuple[str, ...]]] = [
    (messages_request.MessageCreateParamsStreaming, OF_ANTHROPIC, ("request",)),
    (types("anthropic.types.user_message_param").UserMessageParam, OF_ANTHROPIC, ("message",)),
    (messages.TextBlockParam, OF_ANTHROPIC, ("text",)),
    (messages.ImageBlockParam, OF_ANTHROPIC, ("image",)),
    (messages.Base64ImageSourceParam, OF_ANTHROPIC, ("image's source",)),
    (messages.DocumentBlockParam, OF_ANTHROPIC, ("document",)),
    (messages.ToolUseBlockParam, OF_ANTHROPIC, ("tool_use",)),
    (messages.ToolResultBlockParam, OF_ANTHROPIC, ("tool_result",)),
    (messages.ToolParam, OF_ANTHROPIC, ("tool",)),
    (messages.ToolChoiceToolParam, OF_ANTHROPIC, ("tool_choice",)),
    (messages.MetadataParam, OF_ANTHROPIC, ("metadata",)),
    (messages.OutputConfigParam, OF_ANTHROPIC, ("output_config",)),
    (messages.JSONOutputFormatParam, OF_ANTHROPIC, ("format",)),
    (chat_request.CompletionCreateParamsStreaming, OF_CHAT, ("request",)),
    (chat.ChatCompletionUserMessageParam, OF_CHAT, ("message",)),
    (chat.ChatCompletionSystemMessageParam, OF_CHAT, ("message",)),
    (chat.ChatCompletionAssistantMessageParam, OF_CHAT, ("assistant",)),
    (chat.ChatCompletionToolMessageParam, OF_CHAT, ("tool message",)),
    (chat.ChatCompletionContentPartTextParam, OF_CHAT, ("text",)),
    (chat.ChatCompletionContentPartImageParam, OF_CHAT, ("image",)),
    (chat.ChatCompletionContentPartRefusalParam, OF_CHAT, ("refusal",)),
    (chat_image.ImageURL, OF_CHAT, ("image_url",)),
    (chat_parts.File, OF_CHAT, ("file part",)),
    (chat_parts.FileFile, OF_CHAT, ("file",)),
    (chat.ChatCompletionMessageFunctionToolCallParam, OF_CHAT, ("call",)),
    (chat_call.Function, OF_CHAT, ("called function",)),
    (chat.ChatCompletionFunctionToolParam, OF_CHAT, ("tool",)),
    (shared.FunctionDefinition, OF_CHAT, ("function",)),
    (chat.ChatCompletionNamedToolChoiceParam, OF_CHAT, ("tool_choice",)),
    (chat_schema.JSONSchema, OF_CHAT, ("schema",)),
    (responses_request.ResponseCreateParamsStreaming, OF_RESPONSES, ("request",)),
    (responses.EasyInputMessageParam, OF_RESPONSES, ("message",)),
    (responses.ResponseOutputMessageParam, OF_RESPONSES, ("message",)),
    (responses.ResponseInputTextParam, OF_RESPONSES, ("text",)),
    (responses.ResponseOutputTextParam, OF_RESPONSES, ("output text",)),
    (responses.ResponseOutputRefusalParam, OF_RESPONSES, ("refusal",)),
    (responses.ResponseInputImageParam, OF_RESPONSES, ("image",)),
    (responses.ResponseInputFileParam, OF_RESPONSES, OF_FILES),
    (responses.ResponseFunctionToolCallParam, OF_RESPONSES, ("call",)),
    (response_items.FunctionCallOutput, OF_RESPONSES, ("result",)),
    (responses.FunctionToolParam, OF_RESPONSES, ("tool",)),
    (responses.ToolChoiceFunctionParam, OF_RESPONSES, ("tool_choice",)),
    (shared.Reasoning, OF_RESPONSES, ("reasoning",)),
    (responses.ResponseTextConfigParam, OF_RESPONSES, ("text config",)),
    (responses.ResponseFormatTextJSONSchemaConfigParam, OF_RESPONSES, ("schema",)),
]


@pytest.mark.parametrize(("of", "table", "kinds"), [pytest.param(*row, id=row[0].__name__) for row in TYPES])
def test_each_field_that_an_sdk_knows_is_in_the_tables(of: Any, table: dict[str, Kind], kinds: tuple[str, ...]) -> None:
    assert is_typeddict(of)
    known = {name for kind in kinds for name in table[kind].fields}
    assert get_type_hints(of).keys() <= known


def test_what_only_says_how_to_answer_is_left_out_where_tokens_are_counted() -> None:
    asked = get_type_hints(messages_request.MessageCreateParamsStreaming).keys()
    counted = get_type_hints(types("anthropic.types.message_count_tokens_params").MessageCountTokensParams).keys()
    assert asked - counted <= ONLY_TO_ANSWER
    assert not counted & ONLY_TO_ANSWER
