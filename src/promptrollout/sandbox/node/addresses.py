"""Addresses of pods: each gets its own in 127.64.0.0/16, so that every pod has all ports to itself."""

from __future__ import annotations

import os
import socket
from collections import deque

from promptrollout.sandbox.settings import SandboxError

_RESERVATION_PORT = 10250
_FIRST_HOST, _LAST_HOST = 1, 253
_RESERVATION_HOST = 254


class AddressPool:
    """The /24 this sandbox holds; another sandbox on the machine gets another one."""

    def __init__(self) -> None:
        self._reservation, prefix = _reserve()
        # first in, first out: an address rests as long as possible before another pod gets it
        self._free = deque(f"{prefix}.{host}" for host in range(_FIRST_HOST, _LAST_HOST + 1))

    def take(self) -> str:
        if not self._free:
            raise SandboxError(f"no address left: a sandbox holds at most {_LAST_HOST} pods at once")
        return self._free.popleft()

    def give_back(self, address: str) -> None:
        self._free.append(address)

    def close(self) -> None:
        self._reservation.close()


def _reserve() -> tuple[socket.socket, str]:
    """Hold a /24 by listening on its last address: the kernel arbitrates, and lets go when we die."""
    for index in range(256):
        prefix = f"127.64.{(os.getpid() + index) % 256}"
        reservation = socket.socket()
        try:
            reservation.bind((f"{prefix}.{_RESERVATION_HOST}", _RESERVATION_PORT))
            reservation.listen(1)
        except OSError:
            reservation.close()
            continue
        return reservation, prefix
    raise SandboxError("all of 127.64.0.0/16 is in use by other sandboxes; stop one with `promptrollout sandbox down`")
