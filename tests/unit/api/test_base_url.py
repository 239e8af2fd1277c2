"""Base URLs that are valid and will not work, as `lint`, the ModelProvider's status and a 404 say it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from promptrollout.api.base_url import BASE_URL_PROBLEM, base_url_doubt
from promptrollout.api.invalid import first_problem
from promptrollout.api.provider import ProviderSpec
from promptrollout.operator.cluster.store import Store
from promptrollout.operator.declarations.reconcile import provider_verdict


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


@pytest.mark.parametrize(
    "base_url",
    [
        "http://[::1/v1",
        "http://::1/v1",
        "http://[1.2.3.4]/v1",
        "http://[:::]/v1",
        "http://[2001:db8::1%25.openai.azure.com]/v1",
        "http://vllm:99999/v1",
        "http://vllm:0/v1",
        "http://vllm:/v1",
        "http://vllm:４４３/v1",
        "http://vllm:80:90/v1",
        "http:///v1",
        "http://:80/v1",
        "http://a[b@vllm/v1",
        "http://①⑥⑨.254.169.254/v1",
        "http://169。254。169。254/v1",
        "http://%31%36%39.254.169.254/v1",
        "http://a\\b/v1",
    ],
)
def test_what_cannot_be_asked_is_refused_with_its_fix(base_url: str) -> None:
    with pytest.raises(ValidationError) as refused:
        ProviderSpec.model_validate({"baseURL": base_url})
    assert first_problem(refused.value) == f"baseURL: {BASE_URL_PROBLEM}"
    item = {"metadata": {"name": "openai", "namespace": "ns"}, "spec": {"baseURL": base_url}}
    verdict = provider_verdict(item, Store())
    assert verdict == (False, "InvalidSpec", f"spec.baseURL: {BASE_URL_PROBLEM}")


@pytest.mark.parametrize(
    "base_url",
    [
        *("http://vllm", "http://vllm:1", "http://vllm:65535/v1", "http://my_model.ns.svc.:8000/v1"),
        *("http://10.0.0.7:8000/v1", "http://[fd00::7]:8000/v1", "http://[::ffff:10.0.0.7]", "https://u:p%20w@host/v1"),
        *("https://xn--9ca.example/v1", "http://host/a%20b/[c]/é"),
    ],
)
def test_what_can_be_asked_is_taken(base_url: str) -> None:
    assert ProviderSpec.model_validate({"baseURL": base_url}).base_url == base_url
