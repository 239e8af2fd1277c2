"""Base URLs that are valid and will not work, as `lint`, the ModelProvider's status and a 404 say it."""

from __future__ import annotations

import pytest

from promptrollout.api.base_url import base_url_doubt


@pytest.mark.parametrize(
    ("base_url", "says"),
    [
        ("https://api.openai.com/v1/chat/completions", "ends in /chat/completions,"),
        ("https://api.anthropic.com/v1/messages", "ends in /messages,"),
        ("http://vllm:8000/v1/models", "ends in /models,"),
        ("http://vllm:8000/v1/v1", "write /v1 once"),
        ("https://api.openai.com", "write https://api.openai.com/v1"),
        ("https://API.openai.com/openai", "write https://api.openai.com/v1"),
        ("https://api.anthropic.com", "write https://api.anthropic.com/v1"),
    ],
)
def test_what_the_gateway_would_get_404_for_is_named_with_its_fix(base_url: str, says: str) -> None:
    assert says in (base_url_doubt(base_url) or "")


@pytest.mark.parametrize(
    "base_url",
    [
        "https://api.openai.com/v1",
        "https://api.anthropic.com/v1",
        "http://ollama:11434/v1",
        "https://generativelanguage.googleapis.com/v1beta/openai",
        "https://me.openai.azure.com/openai/deployments/gpt",
        "http://gateway/messages/v1",
        "http://models",
    ],
)
def test_what_may_well_be_meant_is_passed(base_url: str) -> None:
    assert base_url_doubt(base_url) is None
