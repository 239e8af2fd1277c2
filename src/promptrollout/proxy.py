"""The proxy through which an endpoint is asked, by the environment's usual variables."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Mapping
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

logger = logging.getLogger(__name__)


def proxy_of(base_url: str) -> str | None:
    """By HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, in either case; None: asked directly."""
    parts = urlsplit(base_url)
    proxies = getproxies_environment()
    found = proxies.get(parts.scheme) or proxies.get("all")
    if not found or _bypassed(parts.hostname or "", parts.netloc, proxies):
        return None
    url = found if "://" in found else f"http://{found}"  # as curl and Go read it
    scheme = urlsplit(url).scheme
    if scheme not in ("http", "https"):
        logger.warning("a proxy of the environment is of kind %s, and only HTTP proxies are known: not used", scheme)
        return None
    return url


def _bypassed(host: str, netloc: str, proxies: Mapping[str, str]) -> bool:
    """NO_PROXY names hosts, domains and, as clusters have them, networks."""
    if proxy_bypass(netloc):  # of the environment too
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(address in network for name in proxies.get("no", "").split(",") if (network := _network(name.strip())))


def _network(name: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(name, strict=False) if "/" in name else None
    except ValueError:
        return None
