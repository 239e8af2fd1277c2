"""One benchmark's outcome: rows for people and machines, and goals with what was reached."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


class Report:
    """Collects rows and goals; `write` prints them and keeps them as JSON.

    Times come from a machine that others may use too: quote ratios and medians, not single numbers.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: list[dict[str, Any]] = []
        self.goals: list[dict[str, Any]] = []

    def row(self, **values: Any) -> None:
        self.rows.append(values)
        print(f"  {values}", flush=True)

    def goal(self, goal: str, limit: float, value: float | None, *, unit: str = "") -> None:
        """`value` must not exceed `limit`; None (not measured) never holds."""
        holds = value is not None and value <= limit
        self.goals.append({"goal": goal, "limit": limit, "value": value, "unit": unit, "holds": holds})

    def write(self) -> None:
        console = Console(width=200)
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        table = Table(*columns, title=self.name)
        for row in self.rows:
            table.add_row(*(shown(row.get(column)) for column in columns))
        console.print(table)
        goals = Table("goal", "limit", "value", "unit", "holds", title="goals")
        for goal in self.goals:
            goals.add_row(*(shown(goal[key]) for key in ("goal", "limit", "value", "unit", "holds")))
        console.print(goals)
        RESULTS.mkdir(exist_ok=True)
        machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
        waiting = round(os.getloadavg()[1], 1)
        content = {
            "name": self.name,
            "machine": machine,
            "load_average_5min": waiting,
            "rows": self.rows,
            "goals": self.goals,
        }
        (RESULTS / f"{self.name}.json").write_text(json.dumps(content, indent=2) + "\n")


def shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]
