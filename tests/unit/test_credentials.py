"""Which API server a client asks, as whom, and through which proxy."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import certifi
import pytest

from promptrollout import cluster
from promptrollout.credentials import connect_with_token

CA_FILE = Path(certifi.where())


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster, and no proxy."""
    for name in ("KUBERNETES_SERVICE_HOST", "POD_NAMESPACE", "KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@asynccontextmanager
async def answering() -> AsyncIterator[tuple[str, list[str]]]:
    """A server's URL, and the first line of each request to it: an API server or a proxy, as one asks it."""
    asked: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0].decode())
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked


def write_kubeconfig(path: Path, server: str, **cluster_fields: str) -> Path:
    contexts = [
        {"name": "c", "context": {"cluster": "k", "user": "u", "namespace": "team"}},
        {"name": "d", "context": {"cluster": "k", "user": "u", "namespace": "other"}},
    ]
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": server, **cluster_fields}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": contexts,
    }
    path.write_text(json.dumps(config))
    return path


# ------------------------------------------------------------------------------------------- proxies


async def test_a_server_on_this_machine_is_asked_without_the_proxy_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with answering() as (proxy, through_proxy), answering() as (server, direct):
        monkeypatch.setenv("HTTP_PROXY", proxy)
        monkeypatch.setenv("NO_PROXY", "elsewhere.example")
        for url in (server, server.replace("127.0.0.1", "localhost")):
            async with connect_with_token(url, "t", CA_FILE) as client:
                await cluster.request(client, "GET", "/version")
    assert through_proxy == []
    assert direct == ["GET /version HTTP/1.1"] * 2


async def test_another_server_is_asked_through_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async with answering() as (proxy, through_proxy):
        monkeypatch.setenv("HTTP_PROXY", proxy)
        async with connect_with_token("http://cluster.example:6443", "t", CA_FILE) as client:
            await cluster.request(client, "GET", "/version")
    assert through_proxy == ["GET http://cluster.example:6443/version HTTP/1.1"]


@pytest.mark.parametrize(
    ("server", "no_proxy", "proxied"),
    [
        ("https://10.96.0.1:443", "10.96.0.0/12", False),
        ("https://10.96.0.1:443", "192.168.0.0/16", True),
        ("https://k8s.corp.example", ".corp.example", False),
        ("https://k8s.corp.example", "", True),
        ("https://127.0.3.4:6443", "", False),
        ("https://[::1]:6443", "", False),
        # as Go's httpproxy reads it
        ("https://[fd00::1]:443", "fd00::1", False),
        ("https://[fd00::1]:443", "[fd00::1]:443", False),
        ("https://k8s.corp.example", "*.corp.example", False),
        ("https://k8s.corp.example", "k8s.corp.example:443", False),
        ("https://k8s.corp.example", "k8s.corp.example:6443", True),
        ("https://k8s.corp.example", "example", False),
        ("https://mycorp.example", "corp.example", True),
        ("https://k8s.corp.example", "a.b,*", False),
    ],
)
async def test_no_proxy_names_hosts_domains_and_networks(
    server: str, no_proxy: str, proxied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    async with connect_with_token(server, "t", CA_FILE) as client:
        assert client.configuration.proxy == ("http://proxy.example:3128" if proxied else None)


async def test_a_proxys_password_is_sent_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    heads: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:s3c%40ret@127.0.0.1:{server.sockets[0].getsockname()[1]}")
        async with connect_with_token("https://cluster.example:6443", "t", CA_FILE) as client:
            with pytest.raises(cluster.ApiUnavailable) as refused:
                await cluster.request(client, "GET", "/version")
    assert b"Proxy-Authorization: Basic dXNlcjpzM2NAcmV0\r\n" in heads[0]
    assert "407" in str(refused.value)
    assert "s3c" not in str(refused.value)


@pytest.mark.parametrize("proxy", ["http://[fd00::9:3128", "http://u:s3cret@proxy:99999", "socks5://u:s3cret@proxy"])
async def test_a_proxy_that_cannot_be_used_is_left_out_with_a_warning(
    proxy: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    async with connect_with_token("https://cluster.example:6443", "t", CA_FILE) as client:
        assert client.configuration.proxy is None
    assert "not used" in caplog.text
    assert "s3cret" not in caplog.text


async def test_the_kubeconfigs_own_proxy_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with answering() as (proxy, through_proxy):
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        config = write_kubeconfig(tmp_path / "config", "http://cluster.example", **{"proxy-url": proxy})
        async with await cluster.connect(str(config)) as client:
            await cluster.request(client, "GET", "/version")
    assert through_proxy == ["GET http://cluster.example/version HTTP/1.1"]


# ------------------------------------------------------------------------------------------- who we are


async def test_the_service_accounts_token_is_read_again_when_it_rotates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(CA_FILE, tmp_path / "ca.crt")
    (tmp_path / "token").write_text("first\n")
    (tmp_path / "namespace").write_text("team\n")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    monkeypatch.setenv("PROMPTROLLOUT_SERVICEACCOUNT_DIR", str(tmp_path))
    async with await cluster.connect() as client:
        assert client.configuration.host == "https://[::1]:6443"
        assert cluster.namespace() == "team"
        assert await client.configuration.get_api_key_with_prefix("BearerToken") == "Bearer first"
        (tmp_path / "next").write_text("second")
        (tmp_path / "next").rename(tmp_path / "token")
        assert await client.configuration.get_api_key_with_prefix("BearerToken") == "Bearer second"


async def test_kubeconfig_gives_server_and_namespace_and_its_absence_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config"
    monkeypatch.setenv("KUBECONFIG", str(config))
    with pytest.raises(cluster.ClusterError, match=f"no kubeconfig at {config}; set KUBECONFIG or --kubeconfig"):
        await cluster.connect()
    write_kubeconfig(config, "http://127.0.0.1:7")
    async with await cluster.connect() as client:
        assert client.configuration.host == "http://127.0.0.1:7"
        assert await client.configuration.get_api_key_with_prefix("BearerToken") == "Bearer t"
    assert cluster.namespace() == "team"


async def test_a_named_kubeconfig_or_context_comes_before_the_pod_that_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_kubeconfig(tmp_path / "config", "http://127.0.0.1:7")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("POD_NAMESPACE", "pods")
    async with await cluster.connect(str(config), "d") as client:
        assert client.configuration.host == "http://127.0.0.1:7"
    assert cluster.namespace(str(config), "d") == "other"
    assert cluster.namespace(str(config)) == "team"
    with pytest.raises(cluster.ClusterError, match="check --kubeconfig and --context"):
        await cluster.connect(str(config), "none-such")
