"""What the id of a rendered prompt says beside its signed note: which process waits for its report, and where."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

_TEXT: Final = re.compile(r"prompt-([0-9a-f]{8})\.([0-9]{1,18})\.([0-9]{1,5})\.([0-9A-Za-z.:-]{0,64})")


@dataclass(frozen=True, slots=True)
class RenderId:
    """Stands where an answer's id has its provider's."""

    process: str
    number: int
    """Of the render, in its process."""
    host: str
    """Of its pod; empty where it does not know it."""
    port: int
    """Its admin port."""

    def __str__(self) -> str:
        return f"prompt-{self.process}.{self.number}.{self.port}.{self.host}"

    @staticmethod
    def read(upstream: str) -> RenderId | None:
        """None: it is a provider's."""
        found = _TEXT.fullmatch(upstream)
        return None if found is None else RenderId(found[1], int(found[2]), found[4], int(found[3]))

    @property
    def url(self) -> str:
        """Of the pod's admin port; empty where it is not known. Pods are addressed by number, never by name."""
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return ""
        host = f"[{address}]" if address.version == 6 else str(address)
        return f"http://{host}:{self.port}"
