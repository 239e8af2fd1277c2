"""The addresses that a gateway may connect to, checked for every connection, since a name may change."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable
from typing import Any

from yarl import URL

from promptrollout.api.networks import Networks


class AddressRefused(OSError):
    """No connection was tried. The text is the same for all addresses, so that aiohttp keeps this type for several."""

    def __init__(self, address: str, why: str) -> None:
        super().__init__(errno.EACCES, "gateways may not connect to this address")
        self.address = address
        self.why = why


def socket_factory(networks: Networks) -> Callable[[Any], socket.socket]:
    """A function that makes the socket for one resolved address, or raises AddressRefused. It runs right before each
    connect, so no second DNS answer can come in between."""

    def make(info: Any) -> socket.socket:
        family, kind, protocol, _, place = info
        address = str(place[0]).partition("%")[0]
        if (why := networks.refusal(ipaddress.ip_address(address))) is not None:
            raise AddressRefused(address, why)
        return socket.socket(family, kind, protocol)

    return make


def ascii_host(base_url: str) -> str:
    """The host as it is resolved or sent to a proxy, in ASCII. Raises ValueError."""
    return URL(base_url).raw_host or ""


def refused_address(error: BaseException) -> AddressRefused | None:
    """The refusal that made a connection fail; None: it failed for another reason."""
    cause = getattr(error, "os_error", error)
    return cause if isinstance(cause, AddressRefused) else None
