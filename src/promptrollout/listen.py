"""Where a pod's ports listen: on every address of the pod, IPv4 and IPv6, whatever families its cluster has."""

from __future__ import annotations

import socket
from typing import Final

BACKLOG: Final = 2048


def listening_socket(address: str, port: int) -> socket.socket:
    """`address` empty: all of them. Raises OSError where the port is taken, or the address is not the machine's."""
    if address:
        return _bound(socket.AF_INET6 if ":" in address else socket.AF_INET, address, port)
    try:
        return _bound(socket.AF_INET6, "::", port)
    except OSError:  # a kernel without IPv6; a port that is taken fails once more
        return _bound(socket.AF_INET, "0.0.0.0", port)


def _bound(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    # asyncio turns Nagle's algorithm off only where the protocol is named; with it on, each answer waits 40 ms
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind((address, port))
        made.listen(BACKLOG)
    except BaseException:
        made.close()
        raise
    return made
