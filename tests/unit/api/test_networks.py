"""Where providers may be: by default neither loopback, link-local nor metadata, however an address is written."""

from __future__ import annotations

import ipaddress

import pytest

from promptrollout.api.networks import Networks, literal_address

DEFAULT = Networks.of()


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("127.0.0.1", "loopback"),
        ("127.8.9.1", "loopback"),
        ("localhost", "loopback"),
        ("LOCALHOST.", "loopback"),
        ("2130706433", "loopback"),
        ("0x7f000001", "loopback"),
        ("0177.0.0.1", "loopback"),
        ("127.1", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::127.0.0.1", "loopback"),
        ("64:ff9b::7f00:1", "loopback"),
        ("2002:7f00:1::", "loopback"),
        ("::ffff:0:127.0.0.1", "loopback"),
        ("64:ff9b:1::7f00:1", "loopback"),
        ("64:ff9b:1:7f00:0:100::", "loopback"),
        ("64:ff9b:1:7f:0:1::", "loopback"),
        ("64:ff9b:1:0:7f:0:100:0", "loopback"),
        ("fd12::5efe:127.0.0.1", "loopback"),
        ("2606:4700::200:5efe:7f00:1", "loopback"),
        ("2001:0:a9fe:a9fe::", "link-local"),
        ("2001:0:808:808:0:0:5601:5601", "link-local"),
        ("169.254.169.254", "link-local"),
        ("169.254.169.254.", "link-local"),
        ("①⑥⑨.254.169.254", "link-local"),
        ("169\u3002254\uff61169\uff0e254", "link-local"),
        ("%31%36%39.254.169.254", "link-local"),
        ("%6Cocalhost", "loopback"),
        ("192.0.0.192", "an address of a cloud's metadata"),
        ("0xa9fea9fe", "link-local"),
        ("::ffff:a9fe:a9fe", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("fd00:ec2::254", "an address of a cloud's metadata"),
        ("100.100.100.200", "an address of a cloud's metadata"),
        ("0.0.0.0", "no address of a host"),
        ("0", "no address of a host"),
        ("::", "no address of a host"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("255.255.255.255", "reserved"),
    ],
)
def test_what_is_refused_by_default(host: str, why: str) -> None:
    assert DEFAULT.refusal_of_host(host) == why


@pytest.mark.parametrize(
    "host",
    [
        *("10.96.0.10", "172.16.0.1", "192.168.1.1", "fd12::1", "8.8.8.8", "2606:4700::1"),
        *("vllm.models", "api.openai.com", "64:ff9b:1::10.0.0.7", "64:ff9b:1:a00:0:700::", "64:ff9b::8.8.8.8"),
        *("2001:0:808:808:0:0:f5ff:fff8", "fd12::5efe:10.0.0.7", "::ffff:0:10.0.0.7"),
    ],
)
def test_public_and_private_ranges_and_names_are_not(host: str) -> None:
    assert DEFAULT.refusal_of_host(host) is None


def test_the_api_server_is_refused_and_what_the_installation_says() -> None:
    networks = Networks.of(["10.0.7.0/24", "127.0.0.0/8"], ["10.0.0.0/8"], "10.96.0.1")
    private = "in a network that this installation refuses"
    assert networks.refusal_of_host("10.96.0.1") == "the Kubernetes API server"
    assert networks.refusal_of_host("10.1.2.3") == private
    assert networks.refusal_of_host("10.0.7.9") is None, "allowed goes before refused"
    assert networks.refusal_of_host("::ffff:127.0.0.9") is None
    assert networks.refusal_of_host("169.254.169.254") == "link-local"
    carries_both = "2001:0:a00:709:0:0:5601:5601"  # Teredo, by the server 10.0.7.9 to 169.254.169.254
    assert networks.refusal_of_host(carries_both) == "link-local"


def test_a_network_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match=r"'10.0.0.1/8' is not a network in CIDR notation"):
        Networks.of(["10.0.0.1/8"])


def test_names_are_no_addresses() -> None:
    assert [literal_address(name) for name in ("", " ", "a.b", "1.2.3.4.5", "0x", "face")] == [None] * 6
    assert literal_address("[::1]") == ipaddress.ip_address("::1")
