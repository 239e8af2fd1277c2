"""Every reason of a decision is explained to whoever reads it in an Event: docs/reference/events.md lists each."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from promptrollout import engine

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "events.md"
POSITION = {"record": 0, "withdraw": 1}
"""Of the reason among the arguments."""


def constants(node: ast.AST) -> Iterator[str]:
    """The texts that an expression may be."""
    if isinstance(node, ast.IfExp):
        yield from constants(node.body)
        yield from constants(node.orelse)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def reasons(source: str) -> Iterator[str]:
    """What is recorded literally, or by a name that is given one of several literals."""
    tree = ast.parse(source)
    for call in (each for each in ast.walk(tree) if isinstance(each, ast.Call)):
        called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if called not in POSITION:
            continue
        given = call.args[POSITION[called]]
        if not isinstance(given, ast.Name):
            yield from constants(given)
            continue
        for each in ast.walk(tree):
            if isinstance(each, ast.Assign) and any(getattr(to, "id", "") == given.id for to in each.targets):
                yield from constants(each.value)


def test_the_page_of_events_explains_every_reason_and_no_other() -> None:
    found = {reason for file in Path(engine.__file__).parent.rglob("*.py") for reason in reasons(file.read_text())}
    assert found >= {"WeightReduced", "RollbackCompleted", "CanaryWithdrawn", "RolloutSuperseded", "ApprovalRequired"}
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.M)) == found
