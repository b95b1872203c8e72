"""docs/troubleshooting.md quotes what the program prints."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
QUOTED = re.findall(r"^```text\n(.*?)\n```$", (ROOT / "docs/troubleshooting.md").read_text(), re.M | re.S)
SHARE = 0.25
"""Of a sentence's letters, the least that stand in the source's text; values have the rest, and texts within it."""


def _texts(node: ast.AST) -> Iterator[list[str]]:
    """Each text below a node, as the parts that stand between its values."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield [child.value]
        elif isinstance(child, ast.JoinedStr):
            yield _parts(child)
        yield from _texts(child)


def _parts(text: ast.JoinedStr) -> list[str]:
    parts = [""]
    for piece in text.values:
        if isinstance(piece, ast.Constant):
            parts[-1] += str(piece.value)
        else:
            parts.append("")
    return parts


@pytest.fixture(scope="module")
def printed() -> list[tuple[int, re.Pattern[str]]]:
    """Of each text of the package and of the scripts: its letters, and a pattern of it with any values."""
    files = [*(ROOT / "platform").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    found = [parts for file in files for parts in _texts(ast.parse(file.read_text(encoding="utf-8")))]
    return [(_letters("".join(parts)), re.compile(".+".join(map(re.escape, parts)))) for parts in found]


def _letters(text: str) -> int:
    return sum(map(str.isalpha, text))


def test_it_has_the_twenty_that_come_first() -> None:
    assert len(QUOTED) >= 20


@pytest.mark.parametrize("sentence", QUOTED)
def test_each_sentence_is_in_the_source(sentence: str, printed: list[tuple[int, re.Pattern[str]]]) -> None:
    said = sentence.removeprefix("error: ")
    ways = (said, said.rstrip("."))  # some are ended by who prints them
    known = max((letters for letters, text in printed if any(map(text.fullmatch, ways))), default=0)
    assert known >= SHARE * _letters(said), f"the source has no such text: {sentence}"
