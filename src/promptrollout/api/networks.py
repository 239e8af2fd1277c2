"""Where a provider may be: the addresses that no gateway connects to unless its installation allows them.

Private ranges are not among them: a model server at a Service of the cluster is what most people have.
"""

from __future__ import annotations

import ipaddress
import socket
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Final
from urllib.parse import unquote

from pydantic import AfterValidator

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_METADATA: Final = "an address of a cloud's metadata"
REFUSED: Final[tuple[tuple[str, Network], ...]] = tuple(
    (what, ipaddress.ip_network(network))
    for what, networks in (
        ("loopback", ("127.0.0.0/8", "::1/128")),
        # of Amazon (IPv6), Google (IPv6), Alibaba, Azure, Oracle; the others' are link-local
        (_METADATA, ("fd00:ec2::254/128", "fd20:ce::254/128")),
        (_METADATA, ("100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32")),
        ("link-local", ("169.254.0.0/16", "fe80::/10")),
        ("no address of a host", ("0.0.0.0/8", "::/128")),
        ("multicast", ("224.0.0.0/4", "ff00::/8")),
        ("reserved", ("240.0.0.0/4",)),
    )
    for network in networks
)
_LAST_BITS: Final = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("::ffff:0:0:0/96"))
"""Of NAT64 (RFC 6052) and stateless translation (RFC 2765): the last 32 bits are an IPv4 address."""
_COMPATIBLE: Final = ipaddress.ip_network("::/96")
_LOCAL_NAT64: Final = ipaddress.ip_network("64:ff9b:1::/48")
"""RFC 8215. Where the IPv4 address is depends on the length of the prefix that is in use: RFC 6052, 2.2."""
_ISATAP: Final = (0x00005EFE, 0x02005EFE)
"""In front of the last 32 bits (RFC 5214)."""
_UNSPECIFIED: Final = ipaddress.ip_network("0.0.0.0/8")


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
        """`api_server`: KUBERNETES_SERVICE_HOST; a name is ignored. Raises ValueError for an invalid network."""
        return cls(
            tuple(ipaddress.ip_network(_cidr(each)) for each in allowed),
            tuple(ipaddress.ip_network(_cidr(each)) for each in refused),
            literal_address(api_server),
        )

    def refusal(self, address: Address) -> str | None:
        """Why nothing may be sent there, in words; None: it may."""
        if _within(address, self.allowed):
            return None
        for each in _meant(address):
            if _within(each, self.allowed):
                continue  # one of several that it may carry
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
        for each in (host, _as_proxies_may_read(host)):
            name = each.rstrip(".")
            address = ipaddress.IPv4Address("127.0.0.1") if name.lower() == "localhost" else literal_address(name)
            if address is not None and (why := self.refusal(address)) is not None:
                return why
        return None


def _as_proxies_may_read(host: str) -> str:
    """Escapes decoded, and other digits and dots as ASCII's."""
    return unicodedata.normalize("NFKC", unquote(host)).replace("\u3002", ".")


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
    """The address, and the IPv4 addresses that it may carry: the network may translate it back."""
    if isinstance(address, ipaddress.IPv4Address):
        return (address,)
    number = int(address)
    last = ipaddress.IPv4Address(number & 0xFFFFFFFF)
    carried = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if (
        any(address in network for network in _LAST_BITS)
        or (address in _COMPATIBLE and number > 1)
        or number >> 32 & 0xFFFFFFFF in _ISATAP
    ):
        carried.append(last)
    if address in _LOCAL_NAT64:
        places = (last, *(_bits_from(number, start) for start in (48, 56, 64)))
        # an address outside the prefixes in use reads as 0.x.x.x
        carried += [each for each in places if each not in _UNSPECIFIED]
    return (address, *(each for each in carried if each is not None))


def _bits_from(number: int, start: int) -> ipaddress.IPv4Address:
    """The 32 bits of an IPv6 address from this one on, bits 64 to 71 left out."""
    without = number >> 64 << 56 | number & (1 << 56) - 1
    return ipaddress.IPv4Address(without >> (120 - start - 32) & 0xFFFFFFFF)
