"""A key goes only where its Secret says that it may."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from promptrollout.gateway.process import Gateway
from promptrollout.llm.providers.key_hosts import parse_hosts
from promptrollout.sandbox.controlplane.pki import Authority
from tests.unit.gateway.kit import CANARY, Caller, Provider, arm, counted, delivery, request

SECRET = "sk-of-the-database-1234"


@pytest.fixture
async def other() -> AsyncIterator[Provider]:
    async with Provider() as running:
        yield running


def write(gateway: Gateway, provider: str, **files: str | None) -> None:
    """As a Secret's volume is swapped: new files in the place of the old ones."""
    folder = gateway.settings.provider_keys_dir / provider
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name.replace("_", "-")
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)


async def told(gateway: Gateway) -> list[tuple[str, str]]:
    await gateway.registry.sweep()
    return [(each.reason, each.message) for each in gateway.reporter.report().problems]


@pytest.mark.parametrize(
    ("hosts", "url", "allowed"),
    [
        ("api.openai.com", "https://api.openai.com/v1", True),
        ("API.OpenAI.com.\n", "https://api.openai.com/v1", True),
        ("api.openai.com", "https://api.openai.com.evil.test/v1", False),
        ("api.openai.com", "https://evil.test/api.openai.com/v1", False),
        ("api.openai.com", "https://api.openai.com@evil.test/v1", False),
        ("a.test, b.test\nc.test", "http://c.test:8000/v1", True),
        ("a.test:8000", "http://a.test:8000/v1", True),
        ("a.test:8000", "http://a.test:8001/v1", False),
        ("a.test:443", "https://a.test/v1", True),
        ("a.test:443", "http://a.test/v1", False),
        ("*.openai.azure.com", "https://mine.openai.azure.com/openai/v1", True),
        ("*.openai.azure.com", "https://openai.azure.com/v1", False),
        ("*.openai.azure.com:443", "https://x.y.openai.azure.com/v1", True),
        ("*.azure.com", "https://evilazure.com/v1", False),
        ("*.openai.azure.com", "https://[2001:db8::1%25.openai.azure.com]/v1", False),
        ("*.0.0.7", "http://10.0.0.7/v1", False),
        ("10.0.0.7", "http://①0.0.0.7:8000/v1", True),
        ("10.0.0.7", "http://10.0.0.7:8000/v1", True),
        ("fd00::7", "http://[fd00:0::7]:8000/v1", True),
        ("[fd00::7]:8000", "http://[fd00::7]:8000/v1", True),
        ("[fd00::7]:8000", "http://[fd00::8]:8000/v1", False),
    ],
)
def test_what_hosts_allow(hosts: str, url: str, allowed: bool) -> None:
    assert parse_hosts(hosts).allow(url) == allowed


@pytest.mark.parametrize("content", ["", " ,\n", "https://a.test", "a.test/v1", "*", "*.", "a b", "a.test:x", "é.test"])
def test_what_is_no_host_is_refused_without_being_repeated(content: str) -> None:
    with pytest.raises(ValueError, match="host") as refused:
        parse_hosts(content)
    assert content.strip() == "" or content not in str(refused.value).replace("*.domain", "")


async def test_a_key_whose_secret_names_other_hosts_is_never_sent(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    """The rollout is not put in service; once its owner adds the host, it is."""
    write(gateway, "openai", api_key=SECRET, hosts="db.internal")
    await gateway.registry.apply("support", delivery(stable=arm(url=provider.url, provider_needsKey=True)))
    (report,) = gateway.reporter.report().rollouts
    host = provider.url.removeprefix("http://").removesuffix("/v1")
    assert report.problem == (
        f"ModelProvider openai: its key may not be sent to {host}: `hosts` of its Secret does not name it: "
        "add the host there"
    )
    assert await told(gateway) == [("ProviderKeyNotBound", "openai")]
    assert (await caller.post(request())).status == 503
    assert provider.headers == []
    write(gateway, "openai", hosts=f"db.internal\n{host}")
    assert await told(gateway) == []
    assert (await caller.post(request())).status == 200
    assert provider.headers[0]["authorization"] == f"Bearer {SECRET}"


async def test_hosts_that_change_while_it_serves_hold_at_once_and_nothing_is_sent(
    gateway: Gateway, caller: Caller, provider: Provider, other: Provider
) -> None:
    write(gateway, "openai", api_key="sk-stable", hosts="127.0.0.1")
    write(gateway, "other", api_key=SECRET, hosts="127.0.0.1")
    canary = arm(CANARY, other.url, provider_name="other", provider_needsKey=True)
    stable = arm(url=provider.url, provider_needsKey=True)
    await gateway.registry.apply("support", delivery(weight=100, stable=stable, canary=canary))
    assert (await caller.post(request())).headers["x-promptrollout-variant"] == "canary"
    before = counted(gateway)
    write(gateway, "other", hosts="elsewhere.test")
    assert gateway.providers.refresh_files() == []
    for _ in range(4):
        assert (await caller.post(request())).headers["x-promptrollout-variant"] == "stable"
    targets = [target for serving in gateway.registry.all() if serving.canary for target in serving.canary.targets]
    await gateway.providers.probe(targets, 1e9)
    assert len(other.headers) == 1, "neither requests nor probes have brought the key there"
    assert counted(gateway) == before, "a wrong entry in a Secret says nothing of the version"
    assert await told(gateway) == [("ProviderKeyNotBound", "other")]
    assert gateway.reporter.report().rollouts[0].canary_provider_unreachable
    # a smaller weight is taken over all the same
    await gateway.registry.apply("support", delivery(2, weight=0, stable=stable, canary=canary))
    assert gateway.reporter.report().rollouts[0].sequence == 2
    write(gateway, "other", hosts="127.0.0.1")
    gateway.providers.refresh_files()
    await gateway.registry.apply("support", delivery(3, weight=100, stable=stable, canary=canary))
    await gateway.providers.probe(targets, 2e9)
    assert (await caller.post(request())).headers["x-promptrollout-variant"] == "canary"


async def test_where_stable_is_meant_callers_get_502_with_the_cure(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    write(gateway, "openai", api_key=SECRET, hosts="127.0.0.1")
    await gateway.registry.apply("support", delivery(stable=arm(url=provider.url, provider_needsKey=True)))
    write(gateway, "openai", hosts="a.test\nhttp://not a host")
    gateway.providers.refresh_files()
    answer = await caller.post(request())
    assert (answer.status, answer.error["code"]) == (502, "provider_key_not_bound")
    assert "`hosts` in its key's Secret does not name the host of its baseURL" in answer.error["message"]
    assert SECRET not in answer.body.decode()
    assert provider.requests == []


async def test_without_hosts_the_key_is_still_sent_with_a_warning(
    gateway: Gateway, caller: Caller, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    write(gateway, "openai", api_key=SECRET)
    await gateway.registry.apply("support", delivery(stable=arm(url=provider.url, provider_needsKey=True)))
    assert (await caller.post(request())).status == 200
    with caplog.at_level(logging.WARNING):
        assert await told(gateway) == [("ProviderKeyUnbound", "openai")]
        assert await told(gateway) == [("ProviderKeyUnbound", "openai")]
    assert caplog.text.count("the key of provider openai may be sent to any host: name its hosts") == 1
    write(gateway, "openai", hosts="127.0.0.1")
    gateway.providers.refresh_files()
    assert await told(gateway) == []


async def test_a_secret_that_is_deleted_keeps_its_key_where_it_may_go(
    gateway: Gateway, provider: Provider, tmp_path: Path
) -> None:
    write(gateway, "openai", api_key=SECRET, hosts="127.0.0.1")
    await gateway.registry.apply("support", delivery(stable=arm(url=provider.url, provider_needsKey=True)))
    write(gateway, "openai", api_key=None, hosts=None)
    assert len(gateway.providers.refresh_files()) == 1
    assert await told(gateway) == []


OLD, NEW = "0a" * 10, "0b" * 10
"""Folders of two Secrets that ModelProviders of one name named, one after the other."""


async def test_a_key_that_was_mounted_for_another_provider_of_the_name_is_never_sent(
    gateway: Gateway, caller: Caller, provider: Provider, other: Provider
) -> None:
    """Its Secret does not say where it may go. The provider was deleted, and made anew elsewhere with another key."""
    stable = arm(url=provider.url, provider_needsKey=True, provider_keySource=OLD)
    for folder in ("openai", f"openai/{OLD}"):
        write(gateway, folder, api_key=SECRET)
    await gateway.registry.apply("support", delivery(stable=stable))
    canary = arm(CANARY, other.url, provider_needsKey=True, provider_keySource=NEW)
    await gateway.registry.apply("support", delivery(2, weight=100, stable=stable, canary=canary))
    assert (await caller.post(request())).headers["x-promptrollout-variant"] == "stable"
    (report,) = gateway.reporter.report().rollouts
    assert (report.sequence, report.problem_sequence) == (1, 2), "no pod confirms it before it mounts that Secret"
    assert (report.problem or "").endswith("is missing: create the object and key that apiKeySecretRef names")
    write(gateway, f"openai/{NEW}", api_key="sk-mine")
    await gateway.registry.sweep()
    assert (await caller.post(request())).headers["x-promptrollout-variant"] == "canary"
    assert [each["authorization"] for each in other.headers] == ["Bearer sk-mine"]
    assert {each["authorization"] for each in provider.headers} == {f"Bearer {SECRET}"}


async def test_another_secret_for_the_same_url_is_taken_over_and_delays_no_rollback(
    gateway: Gateway, caller: Caller, provider: Provider
) -> None:
    write(gateway, f"openai/{OLD}", api_key="sk-old", hosts="127.0.0.1")
    before = arm(url=provider.url, provider_needsKey=True, provider_keySource=OLD)
    await gateway.registry.apply("support", delivery(stable=before))
    after = arm(url=provider.url, provider_needsKey=True, provider_keySource=NEW)
    await gateway.registry.apply("support", delivery(2, stable=after))
    assert gateway.reporter.report().rollouts[0].sequence == 2
    await caller.post(request())
    assert gateway.providers.refresh_files() == []
    for key in ("sk-new", "sk-rotated"):
        write(gateway, f"openai/{NEW}", api_key=key, hosts="127.0.0.1")
        assert gateway.providers.refresh_files() == []
        await caller.post(request())
    sent = [each["authorization"] for each in provider.headers]
    assert sent == ["Bearer sk-old", "Bearer sk-new", "Bearer sk-rotated"]


async def test_a_ca_is_the_one_that_the_delivery_names(gateway: Gateway, provider: Provider, tmp_path: Path) -> None:
    pem = Authority(tmp_path / "pki").ca_file.read_text()
    write(gateway, "openai", **{"ca.crt": pem})
    tls = {"hasCa": True, "caSource": NEW}
    await gateway.registry.apply("support", delivery(stable=arm(url=provider.url, provider_tls=tls)))
    (report,) = gateway.reporter.report().rollouts
    assert (report.problem or "").startswith("ModelProvider openai: its CA is missing")
    write(gateway, f"openai/{NEW}", **{"ca.crt": pem})
    await gateway.registry.sweep()
    assert gateway.reporter.report().rollouts[0].sequence == 1
