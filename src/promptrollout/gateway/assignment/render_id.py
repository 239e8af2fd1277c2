"""The id of a rendered prompt: which process waits for its usage report, and where."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

_TEXT: Final = re.compile(r"prompt-([0-9a-f]{8})\.([0-9]{1,18})\.([0-9]{1,5})\.([0-9A-Za-z.:-]{0,64})")


@dataclass(frozen=True, slots=True)
class RenderId:
    """Takes the place of the provider's id within a response id."""

    process: str
    number: int
    """Number of the render in its process."""
    host: str
    """Address of its pod; empty if the pod does not know it."""
    port: int
    """Admin port of its pod."""

    def __str__(self) -> str:
        return f"prompt-{self.process}.{self.number}.{self.port}.{self.host}"

    @staticmethod
    def read(upstream: str) -> RenderId | None:
        """None: it is a provider's id."""
        match = _TEXT.fullmatch(upstream)
        return None if match is None else RenderId(match[1], int(match[2]), match[4], int(match[3]))

    @property
    def url(self) -> str:
        """URL of the pod's admin port; empty if not known. Always an IP address, never a name."""
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return ""
        host = f"[{address}]" if address.version == 6 else str(address)
        return f"http://{host}:{self.port}"
