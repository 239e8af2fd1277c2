"""What is likely wrong with a ModelProvider's `baseURL`: it is valid, and its provider will answer 404."""

from typing import Final
from urllib.parse import urlsplit

_APPENDED: Final = (
    *("/chat/completions", "/completions", "/responses", "/embeddings", "/messages", "/messages/count_tokens"),
    "/models",
)
_NEED_V1: Final = ("api.openai.com", "api.anthropic.com")
"""Of public providers, all of whose paths begin so."""


def base_url_doubt(base_url: str) -> str | None:
    """In words that follow the field's name and name the fix; None if nothing is."""
    parts = urlsplit(base_url)
    for path in _APPENDED:
        if parts.path.endswith(path):
            return f"ends in {path}, and the gateway appends such paths itself; leave it out"
    if parts.path.endswith("/v1/v1"):
        return "ends in /v1/v1; write /v1 once"
    if parts.hostname in _NEED_V1 and "v1" not in parts.path.split("/"):
        return f"has no /v1, and all paths of {parts.hostname} begin so; write https://{parts.hostname}/v1"
    return None
