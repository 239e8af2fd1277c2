"""The proxy through which an endpoint is asked, by the environment's usual variables."""

from __future__ import annotations

import ipaddress
import logging
from typing import Final
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

logger = logging.getLogger(__name__)

_PORTS: Final = {"http": 80, "https": 443}
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def proxy_of(base_url: str) -> str | None:
    """By HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, in either case; None: asked directly."""
    parts = urlsplit(base_url)
    proxies = getproxies_environment()
    configured = proxies.get(parts.scheme) or proxies.get("all")
    port = parts.port or _PORTS.get(parts.scheme, 0)
    if not configured or _bypassed(parts.hostname or "", port, proxies.get("no", "")):
        return None
    url = configured if "://" in configured else f"http://{configured}"  # as curl and Go read it
    try:
        proxy = urlsplit(url)
        usable = bool(proxy.hostname) and (proxy.port is None or proxy.port > 0)
    except ValueError:  # its text may have a password: it is not logged
        logger.warning("the proxy in the environment for %s:// is not a URL: not used", parts.scheme)
        return None
    if proxy.scheme not in ("http", "https") or not usable:
        logger.warning(
            "the proxy in the environment is of kind %s, and only HTTP proxies are supported: not used", proxy.scheme
        )
        return None
    return url


def _bypassed(host: str, port: int, no_proxy: str) -> bool:
    """Whether NO_PROXY names the host, by Go's rules (golang.org/x/net/http/httpproxy), as kubectl reads it: hosts with
    their subdomains, `.domain` and `*.domain` for subdomains only, addresses, networks, each with a port if wanted."""
    host = host.lower().rstrip(".")
    address = _address(host)
    return any(_names(entry.strip().lower(), host, address, port) for entry in no_proxy.split(","))


def _names(entry: str, host: str, address: _Address | None, port: int) -> bool:
    if entry in ("", "*"):
        return entry == "*"
    if "/" in entry:
        try:
            return address is not None and address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    name, _, wanted = entry.rpartition(":")
    if _address(entry) is not None or not wanted.isdigit() or not name:
        name, wanted = entry, ""
    if wanted and int(wanted) != port:
        return False
    if (named := _address(name)) is not None:
        return named == address
    name = name.removeprefix("*").rstrip(".")
    return host.endswith(name if name.startswith(".") else f".{name}") or host == name


def _address(text: str) -> _Address | None:
    try:
        found = ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found
