"""PromQL of signal `Custom`: a text with variables, filled in for each arm."""

import re
from collections.abc import Mapping
from typing import Final

VARIABLES: Final = ("namespace", "rollout", "rollout_uid", "variant", "version")
"""`version` is the digest's ten characters, as in the gateway's metrics; `variant` is `canary` or `stable`."""
ARM_VARIABLES: Final = ("variant", "version")
"""Without both of them a query would count another arm's traffic, or another revision's."""
_PLACE: Final = re.compile(r"\{\{\s*(\w*)\s*\}\}")


def problem(template: str) -> str | None:
    """What is wrong with it, and the fix; None if nothing is."""
    used = set(_PLACE.findall(template))
    if unknown := sorted(used - set(VARIABLES)):
        return f"{{{{ {unknown[0]} }}}} is not a variable: use {', '.join(VARIABLES)}"
    if missing := [name for name in ARM_VARIABLES if name not in used]:
        return f"{{{{ {missing[0]} }}}} is missing: put {{{{ version }}}} and {{{{ variant }}}} into the label matchers"
    return None


def rendered(template: str, values: Mapping[str, str]) -> str:
    """The query of one arm. KeyError for a variable that `values` lacks."""
    return _PLACE.sub(lambda found: values[found[1]], template)
