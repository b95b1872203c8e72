"""Kept decisions: nothing is streamed twice, and nothing is kept of code that decides otherwise."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import prospect.evaluation
from prospect.data.embeddings import EmbeddingStore
from prospect.data.prepare import read_records
from prospect.evaluation import decision_cache
from prospect.evaluation.decision_cache import DECIDING_FILES, GroupRow, StreamedModel, cached_decisions
from prospect.evaluation.group_streamer import GroupStreamer
from prospect.evaluation.metrics import evaluate
from prospect.evaluation.records import Variant
from tests.earlier import config_of, unpack
from tests.evaluation.encoders import SharedWords

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


class KilledError(Exception):
    """The end of a process."""


def test_an_evaluation_that_ends_early_goes_on_and_streams_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six dialogues in groups of two, as the model sees them and told the state: killed in the third of six groups."""
    monkeypatch.setattr(decision_cache, "SESSIONS_PER_GROUP", 2)
    root = unpack(tmp_path / "root")
    config, store = config_of(root), EmbeddingStore(str(root / "embeddings"))
    placed = read_records(config.data, root / "labels" / "dialogues.jsonl", store).scored("train")
    model = StreamedModel(
        root / "runs/finished/model", root / "cache", str(store.root), config.context, config.streaming
    )
    streamer = GroupStreamer(model, "cpu")
    streamed: list[list[str]] = []

    def stream(rows: list[GroupRow], most: int) -> Iterator[GroupRow]:
        for number, row in enumerate(rows):
            if number == most:
                raise KilledError
            streamed.append([json.loads(text)["video_id"] for text in json.loads(row["dialogues"])])
            yield streamer(row)

    def decide(most: int) -> dict[Variant, list]:
        variants = [Variant("watched"), Variant("told")]
        return cached_decisions(model, placed, variants, lambda rows: stream(rows, most), lambda line: None)

    with pytest.raises(KilledError):
        decide(most=2)
    found = decide(most=9)
    assert streamed == [["v0", "v1"], ["v2", "v3"], ["v4", "v5"]] * 2
    assert decide(most=0) == found
    told = evaluate(found[Variant("told")], encoder=SharedWords()).overall
    assert (told.counts["dialogues"], told["joint_goal_accuracy"]) == (6, 1.0)
