"""Annotation lines in all the ways that the six data sets write them."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prospect.data.sources import Corpus, DataSettings, load_dialogues, to_jsonl
from prospect.data.sources.annotations import read_lines
from prospect.dialogue.schema import Annotation

VARIANTS = [
    ("[94.4s-105.2s] attach wheels", Annotation(start=94.4, end=105.2, text="attach wheels")),
    ("[111.0s] grab it", Annotation(start=111.0, text="grab it")),
    ("[94.4-105.2] no unit", Annotation(start=94.4, end=105.2, text="no unit")),
    ("168.6s-361.1s mix dough with water", Annotation(start=168.6, end=361.1, text="mix dough with water")),
    ("168.6s: 2 eggs", Annotation(start=168.6, text="2 eggs")),
    ("- [3.5s] start", Annotation(start=3.5, text="start")),
    (
        "[1.0s-2.0s] attach (left) arm (mistake: shouldn't have happened)",
        Annotation(start=1, end=2, text="attach (left) arm", mistake="shouldn't have happened"),
    ),
    (
        "[1.0s-2.0s] insert arm (ERROR: it can't (yet). Slide first.)",
        Annotation(start=1, end=2, text="insert arm", mistake="it can't (yet). Slide first."),
    ),
    (
        '[1.0s-2.0s] detach body (correction of "attach body")',
        Annotation(start=1, end=2, text='detach body (correction of "attach body")'),
    ),
]


@pytest.mark.parametrize(("line", "annotation"), VARIANTS)
def test_a_line_is_read(line: str, annotation: Annotation) -> None:
    assert read_lines(line, "d", "v") == ((annotation,), [])


def test_parts_stand_behind_their_line_which_are_ordered_by_their_start() -> None:
    text = "[20.0s-30.0s] b\n - [19.5s] b1\n - [19.0s]: b0\n\n5.0s-9.0s a\n - 6.0s: a0\n"
    lines, _ = read_lines(text, "d", "v")
    assert [(line.text, line.depth) for line in lines] == [("a", 0), ("a0", 1), ("b", 0), ("b0", 1), ("b1", 1)]


@pytest.mark.parametrize(
    "line", ['[19.4s] user: "This thing here?"', ' - [19.4s] assistant: "Yes."', "Summary: The user is done.", "  "]
)
def test_speech_and_summaries_are_no_annotations(line: str) -> None:
    assert read_lines(line, "holoassist", "v") == ((), [])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("2 eggs are broken", "the line has no time: '2 eggs are broken'"),
        ("[1.0s-] stir", "the line has no time"),
        ("[9.0s-4.0s] stir", "end 4.0 lies before start 9.0"),
    ],
)
def test_any_other_line_is_quarantined_with_its_number(line: str, reason: str) -> None:
    lines, [unread] = read_lines(f"[0.0s-1.0s] pour\n{line}", "wtag", "T48")
    assert len(lines) == 1
    assert (unread.dataset, unread.id) == ("wtag", "T48")
    assert unread.field == "parsed_video_anns.all_step_descriptions:2"
    assert reason in unread.reason


@given(st.text())
def test_no_text_is_lost_silently(text: str) -> None:
    lines, unread = read_lines(text, "d", "v")
    said = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("Summary:",))]
    assert len(lines) + len(unread) <= len(said)
    if not any(word in text for word in ("assistant", "user", "Summary")):
        assert len(lines) + len(unread) == len(said)


def generated(folder: Path, *videos: dict[str, Any]) -> Corpus:
    (folder / "train.json").write_text(json.dumps(videos))
    return load_dialogues(DataSettings(source="proassist_generated", path=folder))


def test_conversations_of_a_video_share_its_annotations_and_a_bad_line_costs_nothing_else(tmp_path: Path) -> None:
    talk = {"conversation": [{"role": "user", "time": 1, "content": "Hi"}]}
    video = {"video_uid": "v", "inferred_knowledge": "Tea\n1. Boil.", "conversations": [talk, talk]}
    lines = "[0.5s-3.0s] boil\nstir\n"
    corpus = generated(tmp_path, video | {"parsed_video_anns": {"dataset": "wtag", "all_step_descriptions": lines}})
    first, second = corpus.dialogues
    assert first.annotations == (Annotation(start=0.5, end=3.0, text="boil"),)
    assert first.annotations is second.annotations
    assert first.steps is second.steps
    own = tmp_path / "own.jsonl"
    own.write_text(to_jsonl(corpus.dialogues))
    first, second = load_dialogues(DataSettings(source="dialogues", path=own)).dialogues
    assert first.annotations is second.annotations
    assert [record.field for record in corpus.quarantined] == ["parsed_video_anns.all_step_descriptions:2"]


def test_the_real_records_are_read_line_by_line(shared_data: Path) -> None:
    path = shared_data / "proassist" / "proassist_generated_records.json"
    corpus = load_dialogues(DataSettings(source="proassist_generated", path=path))
    assert not corpus.quarantined
    lines = {d.dataset: d.annotations for d in corpus.dialogues}
    depths = {
        name: (sum(line.depth == 0 for line in a), sum(line.depth == 1 for line in a)) for name, a in lines.items()
    }
    assert depths == {
        "ego4d-goalstep": (10, 267),
        "holoassist": (9, 33),
        "egoexolearn": (79, 0),
        "epickitchens": (329, 0),
        "assembly101": (22, 0),
    }
    assert [line.mistake for line in lines["assembly101"] if line.mistake] == [
        "shouldn't have happened",
        "shouldn't have happened",
        "shouldn't have happened",
        "wrong order",
    ]


def test_goalsteps_parts_are_lines_below_their_step(shared_data: Path) -> None:
    path = shared_data / "prepared" / "goalstep_val.jsonl.gz"
    corpus = load_dialogues(DataSettings(source="canonical", path=path))
    lines = [line for dialogue in corpus.dialogues for line in dialogue.annotations]
    assert sum(line.depth == 1 for line in lines) == 4347
    assert all(d.annotations[0].depth == 0 for d in corpus.dialogues if d.annotations)
    assert all(sum(line.depth == 0 for line in d.annotations) in (0, len(d.steps)) for d in corpus.dialogues)
