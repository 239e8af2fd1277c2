"""Where a provider may be: the addresses that no gateway connects to unless its installation allows them.

Private ranges are not among them: a model server at a Service of the cluster is what most people have.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import AfterValidator

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_METADATA: Final = "an address of a cloud's metadata"
REFUSED: Final[tuple[tuple[str, Network], ...]] = tuple(
    (what, ipaddress.ip_network(network))
    for what, networks in (
        ("loopback", ("127.0.0.0/8", "::1/128")),
        # of Amazon (IPv6), Google (IPv6), Alibaba, Azure; the others' are link-local
        (_METADATA, ("fd00:ec2::254/128", "fd20:ce::254/128", "100.100.100.200/32", "168.63.129.16/32")),
        ("link-local", ("169.254.0.0/16", "fe80::/10")),
        ("no address of a host", ("0.0.0.0/8", "::/128")),
        ("multicast", ("224.0.0.0/4", "ff00::/8")),
        ("reserved", ("240.0.0.0/4",)),
    )
    for network in networks
)
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_COMPATIBLE: Final = ipaddress.ip_network("::/96")


def _cidr(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a network in CIDR notation, such as 10.0.0.0/8 ({error})") from error
    return text


CIDR = Annotated[str, AfterValidator(_cidr)]


@dataclass(frozen=True, slots=True)
class Networks:
    """What an installation says of the networks that its gateways may call."""

    allowed: tuple[Network, ...] = ()
    """Although they are refused by default, or by `refused`."""
    refused: tuple[Network, ...] = ()
    """Besides those refused by default."""
    api_server: Address | None = None
    """Kubernetes' own, as pods reach it."""

    @classmethod
    def of(cls, allowed: Iterable[str] = (), refused: Iterable[str] = (), api_server: str = "") -> Networks:
        """`api_server`: KUBERNETES_SERVICE_HOST; a name is not looked at. Raises ValueError for what is no network."""
        return cls(
            tuple(ipaddress.ip_network(_cidr(each)) for each in allowed),
            tuple(ipaddress.ip_network(_cidr(each)) for each in refused),
            literal_address(api_server),
        )

    def refusal(self, address: Address) -> str | None:
        """Why nothing may be sent there, in words; None: it may."""
        meant = _meant(address)
        if any(_within(each, self.allowed) for each in meant):
            return None
        for each in meant:
            for what, network in REFUSED:
                if _within(each, (network,)):
                    return what
            if each == self.api_server:
                return "the Kubernetes API server"
            if _within(each, self.refused):
                return "in a network that this installation refuses"
        return None

    def refusal_of_host(self, host: str) -> str | None:
        """The same for a URL's host, as far as it is an address and no name."""
        if host.rstrip(".").lower() == "localhost":
            return self.refusal(ipaddress.IPv4Address("127.0.0.1"))
        address = literal_address(host)
        return None if address is None else self.refusal(address)


def literal_address(host: str) -> Address | None:
    """The address that a host is, in any spelling that the system's resolver takes: decimal, octal, hexadecimal, with
    fewer than four parts, mapped into IPv6. None: it is a name."""
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host)) if host and not host.isspace() else None
    except (OSError, UnicodeEncodeError):
        return None


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def _meant(address: Address) -> tuple[Address, ...]:
    """The address, and the IPv4 address that it carries: the network may translate it back."""
    if isinstance(address, ipaddress.IPv4Address):
        return (address,)
    carried = address.ipv4_mapped or address.sixtofour
    if carried is None and (address in _NAT64 or (address in _COMPATIBLE and int(address) > 1)):
        carried = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return (address,) if carried is None else (address, carried)
