"""Translations from a caller's protocol to a provider's: a function each for request, answer and stream."""

from collections.abc import Mapping
from typing import Final

from promptrollout.llm.translations import (
    chat_answer,
    chat_to_messages,
    messages_answer,
    messages_response,
    messages_to_chat,
    responses_to_messages,
)
from promptrollout.llm.translations.base import Translation

TRANSLATIONS: Final[Mapping[tuple[str, str], Translation]] = {
    ("chat", "messages"): Translation(chat_to_messages.request, messages_answer.answer, messages_answer.ChatStream),
    ("responses", "messages"): Translation(
        responses_to_messages.request, messages_response.answer, messages_response.ResponseStream
    ),
    ("messages", "chat"): Translation(messages_to_chat.request, chat_answer.answer, chat_answer.MessagesStream),
}
"""By the names of the caller's protocol and the provider's."""
