"""The hosts that a provider's key may be sent to: the data key `hosts` of its Secret, mounted beside the key."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from promptrollout.api.networks import literal_address
from promptrollout.llm.providers.addresses import ascii_host

MAX_HOSTS: Final = 64
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_NAME: Final = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?")
_ENTRY: Final = re.compile(r"(?:\[(?P<six>[0-9a-f:.]+)\]|(?P<host>[^:\[\]]+))(?::(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class _Host:
    name: str
    port: int | None
    """None: any port."""

    def matches(self, host: str, port: int | None) -> bool:
        if self.port is not None and self.port != port:
            return False
        if self.name.startswith("*."):
            return host.endswith(self.name[1:]) and literal_address(host) is None
        return host == self.name


@dataclass(frozen=True, slots=True)
class KeyHosts:
    """The hosts of one Secret."""

    hosts: tuple[_Host, ...]
    problem: str = "does not name it"
    """Why it does not allow a URL; follows the name of the data key in messages."""

    def allow(self, base_url: str) -> bool:
        """Whether the key may be sent to this URL."""
        parts = urlsplit(base_url)
        host = _canonical(ascii_host(base_url).rstrip("."))
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
        return any(each.matches(host, port) for each in self.hosts)


def parse_hosts(content: str) -> KeyHosts:
    """`host`, `host:port`, `*.domain` or `*.domain:port`, separated by commas or line ends. Raises ValueError, which
    names an entry only by its number, so that no log quotes the Secret."""
    entries = [entry.strip().lower() for entry in re.split(r"[,\n]", content) if entry.strip()]
    if not entries or len(entries) > MAX_HOSTS:
        raise ValueError(f"must name one to {MAX_HOSTS} hosts")
    return KeyHosts(tuple(_host(number, entry) for number, entry in enumerate(entries, 1)))


def _host(number: int, entry: str) -> _Host:
    try:
        bare = ipaddress.IPv6Address(entry)
    except ValueError:
        pass
    else:
        return _Host(str(bare), None)
    match = _ENTRY.fullmatch(entry)
    name = (match["six"] or match["host"]).rstrip(".") if match else ""
    if match is None or not (match["six"] or _NAME.fullmatch(name)):
        raise ValueError(f"entry {number} is not a host, host:port or *.domain (no scheme, no path)")
    return _Host(_canonical(name), int(match["port"]) if match["port"] else None)


def _canonical(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host
