"""Every reason of a decision and of a condition is in one table, and the documentation explains each of them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import promptrollout
from promptrollout import engine
from promptrollout.api.conditions import CONDITIONS, ConditionReason, ConditionType
from promptrollout.api.decisions import DECISIONS, DecisionReason
from promptrollout.api.gateway import Auth
from promptrollout.api.rollout import Stage
from tests.unit.engine.test_conditions import SITUATIONS

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"
POSITION = {"record": 0, "withdraw": 1, "Record": 0, "Withdraw": 0, "EnterStep": 1}
"""Of the reason among the arguments."""


def members(node: ast.AST, table: str) -> Iterator[str]:
    """`A` and `B` in an expression such as `Table.A if x else Table.B`."""
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name) and each.value.id == table:
            yield each.attr


def recorded(source: str) -> Iterator[str]:
    """Reasons that are recorded directly, or by a name that is given one of them."""
    tree = ast.parse(source)
    for call in (each for each in ast.walk(tree) if isinstance(each, ast.Call)):
        called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if called not in POSITION:
            continue
        if len(call.args) <= POSITION[called]:
            continue  # a step that is entered without a decision
        given = call.args[POSITION[called]]
        if not isinstance(given, ast.Name):
            yield from members(given, "DecisionReason")
            continue
        for each in ast.walk(tree):
            if isinstance(each, ast.Assign) and any(getattr(to, "id", "") == given.id for to in each.targets):
                yield from members(each.value, "DecisionReason")


def test_every_decision_that_is_recorded_is_in_the_table_and_no_other() -> None:
    found = {reason for file in Path(engine.__file__).parent.rglob("*.py") for reason in recorded(file.read_text())}
    assert found >= {"WEIGHT_REDUCED", "ROLLBACK_COMPLETED", "CANARY_WITHDRAWN", "ROLLOUT_SUPERSEDED"}
    assert {DecisionReason[name] for name in found} == set(DecisionReason) == set(DECISIONS)


def parts(text: str, level: str) -> dict[str, str]:
    """A page's sections by their headings; what comes before the first one is left out."""
    return dict(re.findall(rf"^{level} (.*?)\n(.*?)(?=^{level} |\Z)", text, re.M | re.S))


def test_the_page_of_events_explains_every_reason_and_no_other() -> None:
    listed = {
        kind: dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", text, re.M))
        for kind, text in parts((REFERENCE / "events.md").read_text(), "##").items()
    }
    assert {kind: set(rows) for kind, rows in listed.items()} == {
        kind: {reason.value for reason, row in DECISIONS.items() if row.type == kind} for kind in ("Warning", "Normal")
    }
    assert sum(map(len, listed.values())) == len(DecisionReason)
    assert all(meaning for rows in listed.values() for meaning in rows.values())


def test_the_page_of_conditions_explains_every_reason_and_no_other() -> None:
    kinds = parts((REFERENCE / "conditions.md").read_text(), "##")
    states = parts(kinds["PromptRollout"], "###")["States of a rollout"]
    explained = {
        kind: {
            name: {
                *re.findall(r"^  - `(\w+)`: .", text, re.M),
                *(re.findall(r"`([A-Z]\w+)`", states) if "*state*" in text else ()),
            }
            for name, text in re.findall(r"^- \*\*`(\w+)`\*\*: (.*?)(?=^- \*\*|^#|\Z)", section, re.M | re.S)
        }
        for kind, section in kinds.items()
    }
    assert explained == {
        kind: {name.value: {reason.value for reason in row.reasons} for name, row in rows.items()}
        for kind, rows in CONDITIONS.items()
    }
    reasons = {reason for types in explained.values() for of_type in types.values() for reason in of_type}
    assert reasons >= {reason.value for reason in ConditionReason}


def test_an_explanation_is_short_enough_to_read() -> None:
    rows = [row for kind in CONDITIONS.values() for row in kind.values()]
    texts = [text for row in DECISIONS.values() for text in (row.meaning, row.action)]
    texts += [text for row in rows for text in (row.meaning, *row.reasons.values())]
    assert [text for text in texts if len(text.split()) > 25] == []


def test_every_condition_that_is_written_is_in_the_table() -> None:
    used = {
        (table, name)
        for file in Path(promptrollout.__file__).parent.rglob("*.py")
        if (file.parent.name, file.name) != ("api", "conditions.py")
        for table in ("ConditionType", "ConditionReason")
        for name in members(ast.parse(file.read_text()), table)
    }
    types = {kind for rows in CONDITIONS.values() for kind in rows}
    reasons = {reason for rows in CONDITIONS.values() for row in rows.values() for reason in row.reasons}
    assert {ConditionType[name] for table, name in used if table == "ConditionType"} == set(ConditionType) == types
    assert {r for r in reasons if isinstance(r, ConditionReason)} == set(ConditionReason)
    # a canary's stage and a gateway's `spec.auth.mode` are reasons as they are
    fields = {*get_args(Stage), *get_args(Auth.model_fields["mode"].annotation)}
    named = {ConditionReason[name] for table, name in used if table == "ConditionReason"}
    assert named >= {reason for reason in ConditionReason if reason.value not in fields}


def test_a_rollouts_conditions_have_the_types_and_reasons_of_the_table() -> None:
    rows = CONDITIONS["PromptRollout"]
    for make, *_ in SITUATIONS.values():
        for condition in make().status.conditions:
            assert condition.reason in rows[ConditionType(condition.type)].reasons, condition
