"""What is wrong with a ModelProvider's `baseURL`, or likely wrong: it is valid, and its provider will answer 404."""

import ipaddress
import re
from typing import Final
from urllib.parse import urlsplit

HOST: Final = r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])"
PORT: Final = r"(:([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?"
BASE_URL: Final = rf"^https?://([A-Za-z0-9._~!$&()*+,;=:%-]*@)?{HOST}{PORT}(/.*)?$"
"""In words that CEL's regular expressions know too."""
_BASE_URL: Final = re.compile(BASE_URL.replace(HOST, f"(?P<host>{HOST})"))
BASE_URL_PROBLEM: Final = (
    "write http(s)://HOST or HOST:PORT; HOST is a name in ASCII (xn--...), an IPv4 address or [IPv6], PORT 1 to 65535"
)
_APPENDED: Final = (
    *("/chat/completions", "/completions", "/responses", "/embeddings", "/messages", "/messages/count_tokens"),
    "/models",
)
_NEED_V1: Final = ("api.openai.com", "api.anthropic.com")
"""Of public providers, all of whose paths begin so."""


def base_url_doubt(base_url: str) -> str | None:
    """In words that follow the field's name and name the fix; None if nothing is."""
    parts = urlsplit(base_url)
    for path in _APPENDED:
        if parts.path.endswith(path):
            return f"ends in {path}, and the gateway appends such paths itself; leave it out"
    if parts.path.endswith("/v1/v1"):
        return "ends in /v1/v1; write /v1 once"
    if parts.hostname in _NEED_V1 and "v1" not in parts.path.split("/"):
        return f"has no /v1, and all paths of {parts.hostname} begin with it; write https://{parts.hostname}/v1"
    return None


def base_url_problem(base_url: str) -> str | None:
    """Why nobody can be asked there, in words that follow the field's name; None if somebody can."""
    found = _BASE_URL.fullmatch(base_url)
    try:
        if found is not None and found["host"].startswith("["):
            ipaddress.IPv6Address(found["host"][1:-1])
    except ValueError:
        return BASE_URL_PROBLEM
    return BASE_URL_PROBLEM if found is None else None
