"""What the pages have in common: their first line, and text of the code as Markdown."""

import re
from typing import Final

HEAD: Final = "<!-- Written by `make generate`. Edit the code, not this page. -->\n"


def prose(text: str) -> str:
    """Text of the code as Markdown: nothing of it is markup, but for what stands in backticks."""
    parts = re.split(r"(``?.*?``?)", " ".join(text.split()))
    return "".join(part if at % 2 else re.sub(r"([*<\[\]])", r"\\\1", part) for at, part in enumerate(parts))


def code(text: str) -> str:
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
