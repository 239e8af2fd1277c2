"""What a gateway may connect to, looked at for every connection: names may point elsewhere by then."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable
from typing import Any

from yarl import URL

from promptrollout.api.networks import Networks


class AddressRefused(OSError):
    """No connection was tried. The text is the same for all addresses, so that several of them stay this error."""

    def __init__(self, address: str, why: str) -> None:
        super().__init__(errno.EACCES, "gateways may not connect to this address")
        self.address = address
        self.why = why


def socket_factory(networks: Networks) -> Callable[[Any], socket.socket]:
    """Makes the socket for one address that a name has, or raises AddressRefused: it is asked right before each
    connect, after the name was resolved, so no second answer of a name server comes in between."""

    def make(info: Any) -> socket.socket:
        family, kind, protocol, _, place = info
        address = str(place[0]).partition("%")[0]
        if (why := networks.refusal(ipaddress.ip_address(address))) is not None:
            raise AddressRefused(address, why)
        return socket.socket(family, kind, protocol)

    return make


def asked_host(base_url: str) -> str:
    """The host as it is resolved, or sent to a proxy: in ASCII, where others see other letters. Raises ValueError."""
    return URL(base_url).raw_host or ""


def refused_address(error: BaseException) -> AddressRefused | None:
    """The refusal that a failed connection was; None: it failed otherwise."""
    found = getattr(error, "os_error", error)
    return found if isinstance(found, AddressRefused) else None
