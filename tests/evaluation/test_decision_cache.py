"""What decisions are kept by: the code that decides is all of it."""

import ast
from pathlib import Path

import prospect.evaluation
from prospect.evaluation.decision_cache import DECIDING_FILES

FOLDER = Path(prospect.evaluation.__path__[0])
KEPT_APART = {"decision_cache.py"}
"""Imported for a group's size, which is in the key, and for types."""


def imported(file: Path) -> set[str]:
    """Files of `prospect.evaluation` that a module imports."""
    nodes = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom))
    names = (node.module or "" for node in nodes)
    return {f"{name.rpartition('.')[2]}.py" for name in names if name.startswith("prospect.evaluation.")}


def test_the_hash_of_the_code_holds_every_module_that_the_streamer_imports() -> None:
    found, new = set[str](), {"group_streamer.py"}
    while new:
        found |= new
        new = {name for each in new for name in imported(FOLDER / each)} - found - KEPT_APART
    assert found == set(DECIDING_FILES)
