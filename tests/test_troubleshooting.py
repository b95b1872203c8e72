"""docs/troubleshooting.md quotes what the program prints, and what Ray does."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/troubleshooting.md").read_text()
OURS = [*(ROOT / "platform").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
RAYS = [
    Path(ray.__file__).parent / "_private" / name
    for name in ("services.py", "authentication/authentication_constants.py")
]
"""Where Ray has the sentences that are quoted as its own."""
SHARE = 0.25
"""Of a sentence's letters, the least that stand in the source's text; values have the rest, and texts within it."""

Printed = list[tuple[int, re.Pattern[str]]]
"""Of each text of a source: its letters, and a pattern of it with any values."""


def quoted(fence: str) -> list[str]:
    return re.findall(rf"^```{fence}\n(.*?)\n```$", PAGE, re.M | re.S)


def texts(node: ast.AST) -> Iterator[list[ast.expr]]:
    """Each text below a node, as what it is put together from."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield [child]
        elif isinstance(child, ast.JoinedStr):
            yield child.values
        yield from texts(child)


def pattern_of(piece: ast.expr) -> str:
    """What a piece of a text may be where it is printed: a value is a number, or quoted, where the source says so."""
    if isinstance(piece, ast.Constant):
        return re.escape(str(piece.value))
    assert isinstance(piece, ast.FormattedValue)
    if piece.conversion == ord("r"):
        return r"(?:'.*'|\".*\"|[\[({].*[\])}]|[-\d.]+|None|True|False)"
    form = piece.format_spec.values[-1] if isinstance(piece.format_spec, ast.JoinedStr) else None
    if isinstance(form, ast.Constant) and re.search("[dfgn,%]$", str(form.value)):
        return r"[-+\d.,e%]+"
    return ".+"


def letters(text: str) -> int:
    return sum(map(str.isalpha, text))


def fixed_letters(pieces: list[ast.expr]) -> int:
    return letters("".join(str(piece.value) for piece in pieces if isinstance(piece, ast.Constant)))


@pytest.fixture(scope="module")
def ours() -> Printed:
    found = [pieces for file in OURS for pieces in texts(ast.parse(file.read_text(encoding="utf-8")))]
    return [(fixed_letters(pieces), re.compile("".join(map(pattern_of, pieces)))) for pieces in found]


@pytest.fixture(scope="module")
def rays() -> Printed:
    """Of texts with several sentences each one; Ray fills in values with `str.format`."""
    found = [pieces for file in RAYS for pieces in texts(ast.parse(file.read_text(encoding="utf-8")))]
    whole = [str(only.value) for only, *more in found if isinstance(only, ast.Constant) and not more]
    sentences = [re.split(r"\{[^{}]*\}", each) for text in whole for each in re.split(r"(?<=[.!]) ", text)]
    return [(letters("".join(parts)), re.compile(".+".join(map(re.escape, parts)))) for parts in sentences]


def share(sentence: str, printed: Printed) -> float:
    """Of a sentence's letters, those that a source has as text; 0 where it has no such text."""
    said = sentence.removeprefix("error: ")
    ways = (said, said.rstrip("."))  # some are ended by who prints them
    known = max((letters for letters, text in printed if any(map(text.fullmatch, ways))), default=0)
    return known / letters(said)


def test_it_has_the_twenty_that_come_first() -> None:
    assert len(quoted("text")) >= 20
    headings = re.findall(r"^### .+?(?=^##|\Z)", PAGE, re.M | re.S)
    assert [each.splitlines()[0] for each in headings if "```text" not in each] == [], "each quotes a sentence"


@pytest.mark.parametrize("sentence", quoted("text"))
def test_each_sentence_is_in_the_source(sentence: str, ours: Printed) -> None:
    assert share(sentence, ours) >= SHARE, f"the source has no such text: {sentence}"


@pytest.mark.parametrize("sentence", quoted("text Ray"))
def test_each_sentence_of_rays_is_in_its_source(sentence: str, rays: Printed) -> None:
    assert share(sentence, rays) >= SHARE, f"Ray's source has no such text: {sentence}"


def test_a_sentence_that_differs_is_seen(ours: Printed) -> None:
    """In a word, in the quotes about a value, and in what is no number."""
    good = "model 'models:/a@champion' is not registered at sqlite:////mlflow.db; registered: none; train first"
    assert share(good, ours) >= SHARE
    assert share(good.replace("'", ""), ours) < SHARE
    assert share(good.replace("registered at", "known at"), ours) < SHARE
    late = "the tracking server did not answer for {} s (x); start the same run again later: it continues"
    assert share(late.format(300), ours) >= SHARE
    assert share(late.format("many"), ours) < SHARE
