"""`python -m promptrollout.cli.reference [ROOT]`, ROOT being the repository (default: the current directory).

`make generate` runs it and then mdformat, `make check` fails if the result differs from what is committed.
"""

import asyncio
import sys
from pathlib import Path
from typing import Final

from promptrollout.api.crds import KINDS
from promptrollout.cli.reference.commands import commands_page
from promptrollout.cli.reference.fields import fields_page
from promptrollout.cli.reference.metrics import gateway_metrics, metrics_page, operator_metrics
from promptrollout.cli.reference.reasons import conditions_page, events_page

FOLDER: Final = Path("docs/reference")


def pages() -> dict[Path, str]:
    """All of them, by their path."""
    found = {FOLDER / "fields" / f"{kind.kind_name.lower()}.md": fields_page(kind) for kind in KINDS}
    found[FOLDER / "metrics.md"] = metrics_page(asyncio.run(gateway_metrics()), operator_metrics())
    found[FOLDER / "commands.md"] = commands_page()
    found[FOLDER / "events.md"] = events_page()
    found[FOLDER / "conditions.md"] = conditions_page()
    return found


if __name__ == "__main__":
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    for path, text in pages().items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text.rstrip() + "\n", encoding="utf-8")
