"""The pages hold together: links and anchors resolve, tables stay tables, and no page grows beyond one subject."""

import re
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest

from promptrollout.cli.reference.markdown import anchor
from tests.world import World

ROOT = Path(__file__).parents[3]
WORDS_IN_A_CELL = 25
PAGE_BYTES = 14_000
LONGER = {"docs/reference/fields/promptrollout.md", "docs/reference/fields/promptdelivery.md", "CHANGELOG.md"}
"""Generated, or a list that only grows."""

FENCE = re.compile(r"^( *)(```+|~~~+).*?^\1\2[ ]*$", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def pages() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    return sorted(name for name in listed.stdout.split() if (ROOT / name).is_file())


PAGES = pages()


def text(name: str) -> str:
    """Without code blocks."""
    return FENCE.sub("", (ROOT / name).read_text("utf-8"))


def links(name: str) -> list[str]:
    return LINK.findall(re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", text(name), flags=re.S))


def anchors(name: str) -> set[str]:
    """Of its headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", text(name), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("\\", "")
        base = anchor(plain.replace("`", "").replace("*", "").strip())
        repeated = (f"{base}-{count}" for count in range(1, 100))
        found.add(base if base not in found else next(each for each in repeated if each not in found))
    return found


@pytest.mark.parametrize("name", PAGES)
def test_every_relative_link_and_anchor_resolves(name: str) -> None:
    broken = []
    for link in links(name):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, fragment = unquote(link).partition("#")
        target = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        if not target.exists() or (fragment and fragment not in anchors(str(target.relative_to(ROOT)))):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("name", PAGES)
def test_no_table_cell_is_a_paragraph(name: str) -> None:
    long = [
        cell.strip()
        for line in text(name).splitlines()
        if line.lstrip().startswith("|")
        for cell in re.split(r"(?<!\\)\|", line)
        if len(re.sub(r"\]\([^)]*\)", "]", cell).split()) > WORDS_IN_A_CELL
    ]
    assert long == []


@pytest.mark.parametrize("name", [name for name in PAGES if name not in LONGER])
def test_a_page_has_one_subject(name: str) -> None:
    assert len((ROOT / name).read_bytes()) <= PAGE_BYTES


def test_the_index_lists_every_page() -> None:
    index = {
        str(((ROOT / "docs" / link.partition("#")[0]).resolve()).relative_to(ROOT)) for link in links("docs/README.md")
    }
    shelves = tuple(f"docs/{shelf}/" for shelf in ("get-started", "how-to", "reference", "explanation"))
    assert {name for name in PAGES if name.startswith(shelves)} - index == set()


def test_every_condition_of_a_rollout_is_explained() -> None:
    status = World().tick().status
    section = text("docs/reference/conditions.md").partition("## PromptRollout\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^- \*\*`(\w+)`\*\*", section, re.M)) == {each.type for each in status.conditions}


def test_every_module_that_the_architecture_names_exists() -> None:
    source = ROOT / "src" / "promptrollout"
    named = re.findall(r"`([\w/.]+/[\w]*(?:\.py)?)`", (ROOT / "docs" / "architecture.md").read_text())
    assert len(named) > 40
    places = (source, source.parent.parent, source.parent)
    assert [name for name in named if not any((place / name).exists() for place in places)] == []
