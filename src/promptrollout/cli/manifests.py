"""YAML files as the objects in them, with the line of every field."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from promptrollout.simulation.bounded_yaml import BoundedLoader

SUFFIXES: Final = (".yaml", ".yml", ".json")
MERGE_KEY: Final = "tag:yaml.org,2002:merge"


@dataclass(frozen=True, slots=True)
class Manifest:
    """One object: `lines` has a line for each path in it."""

    source: str
    body: Any
    lines: dict[tuple[str | int, ...], int] = field(default_factory=dict)

    def line(self, path: tuple[str | int, ...]) -> int:
        """Where the field is, or else the nearest that holds it."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return 1


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file or document that is not a manifest, and why."""

    source: str
    line: int
    reason: str


def files_below(path: Path) -> list[Path]:
    """The file itself, or every manifest in a directory and those below, sorted."""
    if not path.is_dir():
        return [path]
    return sorted(each for each in path.rglob("*") if each.suffix in SUFFIXES and each.is_file())


def read(source: str, text: str) -> Iterator[Manifest | Unreadable]:
    """The objects of a multi-document stream, `List`s unfolded; keys that stand twice are reported."""
    try:
        loader = BoundedLoader(text)
    except yaml.YAMLError as error:
        yield Unreadable(source, 1, f"not YAML: {' '.join(str(error).split())}")
        return
    try:
        while loader.check_node():
            node = loader.get_node()
            if node is None:
                break
            lines: dict[tuple[str | int, ...], int] = {}
            for line, key in _measure(node, (), lines):
                yield Unreadable(source, line, f"{key} appears twice in one object; remove one")
            body = loader.construct_document(node)
            if body is None:
                continue
            if isinstance(body, dict) and body.get("kind") == "List" and isinstance(body.get("items"), list):
                for index, item in enumerate(body["items"]):
                    own = {path[2:]: at for path, at in lines.items() if path[:2] == ("items", index)}
                    yield Manifest(source, item, own)
                continue
            yield Manifest(source, body, lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        yield Unreadable(source, mark.line + 1 if mark else 1, f"not YAML: {error.problem or error.context}")
    except (yaml.YAMLError, ValueError) as error:
        yield Unreadable(source, 1, f"not YAML: {' '.join(str(error).split())}")
    finally:
        loader.dispose()


def _measure(
    node: yaml.Node, path: tuple[str | int, ...], lines: dict[tuple[str | int, ...], int]
) -> Iterator[tuple[int, str]]:
    """Fills `lines`; yields (line, key) of keys that stand twice."""
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE_KEY:
                continue
            if key.value in seen:
                yield key.start_mark.line + 1, key.value
            seen.add(key.value)
            lines[(*path, key.value)] = key.start_mark.line + 1
            yield from _measure(value, (*path, key.value), lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _measure(value, (*path, index), lines)
