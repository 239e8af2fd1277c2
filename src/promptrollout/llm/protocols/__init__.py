"""The protocols of callers: one module each, and the table of paths. A new protocol is one file and one line."""

from collections.abc import Mapping
from typing import Final

from promptrollout.llm.protocols.base import Protocol
from promptrollout.llm.protocols.chat import CHAT
from promptrollout.llm.protocols.count_tokens import COUNT_TOKENS
from promptrollout.llm.protocols.embeddings import EMBEDDINGS
from promptrollout.llm.protocols.messages import MESSAGES
from promptrollout.llm.protocols.responses import RESPONSES

PROTOCOLS: Final[Mapping[str, Protocol]] = {
    "/v1/chat/completions": CHAT,
    "/v1/responses": RESPONSES,
    "/v1/messages": MESSAGES,
    "/v1/messages/count_tokens": COUNT_TOKENS,
    "/v1/embeddings": EMBEDDINGS,
}
"""By path."""

BY_NAME: Final[Mapping[str, Protocol]] = {protocol.name: protocol for protocol in PROTOCOLS.values()}
