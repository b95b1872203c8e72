"""No recording on two sides of a split, and what a source says twice is reported."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prospect.data.sources import Corpus, DataSettings, file_stem, load_dialogues, recording_of
from prospect.data.sources.hygiene import with_splits, without_straddling
from prospect.dialogue.schema import Dialogue
from prospect.errors import ConfigError

RECORDING = "nusar-2021_action_both_9011-c03f_9011_user_id_2021-02-01_160239"
VIEWS = [
    f"{task}_{RECORDING}__{camera}_mono10bit"
    for task in ("assembly", "disassembly")
    for camera in ("HMC_21110305", "HMC_84355350")
]


def read(folder: Path, *records: dict[str, Any], **settings: Any) -> Corpus:
    (folder / "records.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return load_dialogues(DataSettings(source="canonical", path=folder / "records.jsonl", **settings))


def toy(video_id: str, split: str = "", text: str = "") -> dict[str, Any]:
    turns = [{"role": "assistant", "time": 1, "text": text or f"About {video_id}."}]
    return {"dataset": "assembly101", "video_id": video_id, "goal": "Toy", "split": split, "turns": turns}


def test_all_views_and_both_tasks_of_a_recording_are_one_recording() -> None:
    assert {recording_of("assembly101", view) for view in VIEWS} == {RECORDING}
    assert recording_of("assembly101", RECORDING) == RECORDING
    assert recording_of("holoassist", "R1__x") == "R1__x"
    assert len({file_stem("assembly101", view) for view in VIEWS}) == 2
    assert file_stem("ego4d", "grp-e1") == file_stem("ego4d-goalstep", "e1") == "e1"
    assert file_stem("kitchen", "assembly_1") == "assembly_1"


@pytest.mark.parametrize(
    ("splits", "kept"), [(("train", "val"), "validation"), (("test", "train"), "test"), (("val", "test"), "test")]
)
def test_the_side_that_is_held_out_more_keeps_the_recording(tmp_path: Path, splits: tuple[str, str], kept: str) -> None:
    corpus = read(tmp_path, toy(VIEWS[0], splits[0]), toy(VIEWS[3], splits[1]), toy("other", "train"))
    [dialogue] = [d for d in corpus.dialogues if d.video_id != "other"]
    assert dialogue.split == kept
    [record] = corpus.quarantined
    assert record.field == "split"
    assert f"recording {RECORDING} is in {kept} with video {dialogue.video_id}" in record.reason


def test_a_view_without_a_split_goes_with_its_recording(tmp_path: Path) -> None:
    corpus = read(tmp_path, toy(VIEWS[0], "val"), toy(VIEWS[1]))
    assert [d.split for d in corpus.dialogues] == ["validation", "validation"]
    assert not corpus.quarantined


def test_holding_out_draws_recordings_and_takes_all_their_views(tmp_path: Path) -> None:
    others = [toy(view.replace("c03f", name)) for name in ("a", "b") for view in VIEWS]
    drawn = read(tmp_path, *map(toy, VIEWS), *others, holdout=1)
    assert len(drawn.split("test")) == 4
    assert len({recording_of(d.dataset, d.video_id) for d in drawn.split("test")}) == 1
    named = read(tmp_path, *map(toy, VIEWS), *others, holdout=(VIEWS[2],))
    assert [d.video_id for d in named.split("test")] == VIEWS
    with pytest.raises(ConfigError, match="4 of 3 recordings"):
        read(tmp_path, *map(toy, VIEWS), *others, holdout=4)


views = st.builds(
    Dialogue,
    dataset=st.just("assembly101"),
    video_id=st.builds(
        "{}_r{}__{}".format, st.sampled_from(["assembly", "disassembly"]), st.integers(0, 2), st.just("c")
    ),
    dialogue_id=st.uuids().map(str),
    split=st.sampled_from(["", "train", "validation", "test", "extra"]),
)


@given(st.lists(views))
def test_no_recording_is_ever_on_two_sides(dialogues: list[Dialogue]) -> None:
    kept, quarantined = without_straddling(with_splits(dialogues, ()))
    sides: dict[str, set[str]] = {}
    for dialogue in kept:
        sides.setdefault(recording_of(dialogue.dataset, dialogue.video_id), set()).add(dialogue.split)
    assert all(len(splits) == 1 for splits in sides.values())
    assert len(kept) + len(quarantined) == len(dialogues)
    assert sides.keys() == {recording_of(d.dataset, d.video_id) for d in dialogues}


def test_what_is_said_twice_is_used_and_reported_with_both_ids_and_splits(tmp_path: Path) -> None:
    same = "Attach the wheel."
    corpus = read(tmp_path, toy("a", "train", same), toy("b", "test", same), toy("c", "test", same), toy("d"))
    assert len(corpus.dialogues) == 4
    assert [(d.first, d.second, d.crosses_splits) for d in corpus.duplicates] == [
        ("a/main", "b/main", True),
        ("a/main", "c/main", True),
    ]
    assert str(corpus.duplicates[0]) == "b/main (test) says what a/main (train) says"
