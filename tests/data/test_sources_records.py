"""Readers on small records: order, splits, round trips, and one clear sentence for whatever is wrong."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prospect.data.sources import DataSettings, load_dialogues, place_all, to_jsonl
from prospect.data.sources.corpus import Corpus
from prospect.dialogue.schema import Dialogue, Step, TimedTransition, Turn
from prospect.errors import ConfigError, DataError


def canonical(**changes: Any) -> dict[str, Any]:
    record = {
        "dataset": "kitchen",
        "video_id": "v1",
        "goal": "Make tea",
        "duration": 20.0,
        "steps": [{"start": 1, "end": 4.5, "text": "boil water"}, {"start": 3, "end": 9, "text": "add  a\nbag"}],
        "turns": [{"start": 0.5, "role": "user", "text": "Hi"}],
    }
    return record | changes


def dst(**changes: Any) -> dict[str, Any]:
    def update(time: float, step: str, transition: str) -> dict[str, Any]:
        return {"role": "DST_UPDATE", "time": time, "content": [{"id": step, "transition": transition}]}

    record = {
        "dataset": "assembly101",
        "video_uid": "v1",
        "inferred_knowledge": "Toy\n1. Build it.\n2. Show it.",
        "conversation": [
            {"role": "system", "content": "You are helpful.", "start_frame": 0},
            {**update(2.0, "S1", "start"), "start_frame": 0},
            {"role": "assistant", "time": 2.0, "content": "Build it.", "start_frame": 0},
            update(8.0, "S1", "complete"),
        ],
        "dst": [{"type": "step", "id": "S1", "start_ts": 2.0, "end_ts": 8.0, "name": "Build it."}],
    }
    return record | changes


def read(folder: Path, source: str, *records: Any, **settings: Any) -> Corpus:
    file = folder / "records.jsonl"
    file.write_text("".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records))
    return load_dialogues(DataSettings(source=source, path=file, **settings))


def test_steps_are_numbered_in_file_order_on_one_line_each_and_may_overlap(tmp_path: Path) -> None:
    [dialogue] = read(tmp_path, "canonical", canonical()).dialogues
    assert [(step.id, step.name) for step in dialogue.steps] == [("S1", "boil water"), ("S2", "add a bag")]
    [(_, timeline)], _ = place_all([dialogue], lambda _: None)
    assert {frame: len(events.delta) for frame, events in timeline.events.items() if events.delta} == {
        1: 1,
        5: 1,
        8: 1,
        17: 1,
    }


def test_turns_are_sorted_by_time_and_equal_times_keep_their_order(tmp_path: Path) -> None:
    turns = [{"time": t, "role": "user", "text": f"{t} {n}"} for n, t in enumerate((5, 1, 5, 0, 1))]
    [dialogue] = read(tmp_path, "canonical", canonical(turns=turns)).dialogues
    assert [turn.text for turn in dialogue.turns] == ["0 3", "1 1", "1 4", "5 0", "5 2"]


@pytest.mark.parametrize(
    "skipped",
    [
        {"start": -1, "end": -1.0, "text": "stir", "performed": "Skipped this step"},
        {"start": 2, "end": 3, "text": "stir", "performed": False},
        {"start": 2, "end": 3, "text": "stir", "errors": [{"tag": "Missing Step"}]},
    ],
)
def test_a_skipped_step_stays_in_the_recipe_without_transitions(tmp_path: Path, skipped: dict[str, Any]) -> None:
    [dialogue] = read(tmp_path, "canonical", canonical(steps=[skipped])).dialogues
    assert dialogue.step_names == ("stir",)
    assert not dialogue.steps[0].performed
    assert dialogue.transitions() == ()


def test_words_about_how_a_step_was_performed_do_not_make_it_skipped(tmp_path: Path) -> None:
    step = {"start": 2, "end": 3, "text": "stir", "performed": "stir with a fork", "errors": [{"tag": "Technique"}]}
    [dialogue] = read(tmp_path, "canonical", canonical(steps=[step])).dialogues
    assert len(dialogue.transitions()) == 2


def test_dst_turns_alone_give_explicit_transitions_and_times_decide(tmp_path: Path) -> None:
    [dialogue] = read(tmp_path, "proassist_dst", dst(dst=None)).dialogues
    assert dialogue.step_names == ("Build it.", "Show it.")
    assert dialogue.explicit_transitions == (
        TimedTransition(time=2.0, step=0, kind="start"),
        TimedTransition(time=8.0, step=0, kind="complete"),
    )
    [(_, timeline)], _ = place_all([dialogue], lambda _: 40)
    assert [frame for frame, events in timeline.events.items() if events.delta] == [3, 15]
    assert timeline[3].utterance == "Build it."


def test_dst_spans_alone_give_the_same_transitions(tmp_path: Path) -> None:
    talk = [turn for turn in dst()["conversation"] if turn["role"] != "DST_UPDATE"]
    [from_spans] = read(tmp_path, "proassist_dst", dst(conversation=talk)).dialogues
    [from_turns] = read(tmp_path, "proassist_dst", dst(dst=None)).dialogues
    assert from_spans.transitions() == from_turns.transitions()


def test_a_clip_of_a_dst_record_has_only_its_own_updates(tmp_path: Path) -> None:
    turns = dst()["conversation"]
    clips = [
        dst(conversation=turns[:3], start_frame_idx=2, end_frame_idx=10),
        dst(conversation=turns[3:], start_frame_idx=10, end_frame_idx=18, clip_idx=1),
    ]
    corpus = read(tmp_path, "proassist_dst", *clips)
    assert [d.dialogue_id for d in corpus.dialogues] == ["user_0", "user_0-clip1"]
    assert [len(d.transitions()) for d in corpus.dialogues] == [2, 2]


@pytest.mark.parametrize(
    ("spans", "difference"),
    [
        ({"end_ts": 9.0}, "dst says S1->complete at 9 s, no DST_UPDATE turn (2 differences)"),
        ({"start_ts": 1.0}, "dst says S1->start at 1 s, no DST_UPDATE turn (2 differences)"),
    ],
)
def test_spans_and_updates_that_disagree_quarantine_the_record(
    tmp_path: Path, spans: dict[str, float], difference: str
) -> None:
    corpus = read(tmp_path, "proassist_dst", dst(dst=[dst()["dst"][0] | spans]))
    [record] = corpus.quarantined
    assert (record.dataset, record.id, record.field, record.reason) == ("assembly101", "v1", "dst", difference)


def test_an_update_without_its_span_is_named(tmp_path: Path) -> None:
    [record] = read(tmp_path, "proassist_dst", dst(dst=[])).quarantined
    assert record.reason == "a DST_UPDATE turn says S1->start at 2 s, dst does not (2 differences)"


def test_confidence_and_source_of_a_span_are_read(tmp_path: Path) -> None:
    row = dst()["dst"][0] | {"confidence": 0.75, "source": "aligner"}
    [dialogue] = read(tmp_path, "proassist_dst", dst(dst=[row])).dialogues
    assert [(step.confidence, step.source) for step in dialogue.steps] == [(0.75, "aligner"), (None, "recipe")]


@pytest.mark.parametrize("skipped", [{"start_ts": -1, "end_ts": -1.0}, {"performed": False}])
def test_a_span_marked_as_skipped_is_a_step_that_was_not_performed(tmp_path: Path, skipped: dict[str, Any]) -> None:
    row = {"type": "step", "id": "S2", "start_ts": 8.0, "end_ts": 9.0, "name": "Show it."} | skipped
    [dialogue] = read(tmp_path, "proassist_dst", dst(dst=[*dst()["dst"], row])).dialogues
    assert [step.performed for step in dialogue.steps] == [True, False]
    assert [change.step for change in dialogue.transitions()] == [0, 0]


BAD_RECORDS = [
    ("canonical", canonical(turns="none"), "turns", "'none' must be a list"),
    ("canonical", canonical(split="fold3"), "split", "'fold3' must be one of train, validation, test"),
    ("canonical", {"dataset": "kitchen"}, "video_id", "is missing"),
    ("canonical", "{oops", "record", "not valid JSON"),
    ("canonical", "[1]", "record", "a list is not a record"),
    ("dialogues", {"dataset": "d", "video_id": "v", "dialogue_id": "x", "gaol": "tea"}, "gaol", "unknown field"),
    ("proassist_generated", {"video_uid": "v", "conversations": []}, "conversations", "no list of conversations"),
    ("proassist_dst", dst(dst=dst()["dst"] * 2), "dst", "S1 has more than one span"),
]


@pytest.mark.parametrize(("source", "record", "field", "reason"), BAD_RECORDS)
def test_a_bad_record_is_quarantined_and_the_next_one_read(
    tmp_path: Path, source: str, record: Any, field: str, reason: str
) -> None:
    good = {
        "canonical": canonical(video_id="good"),
        "dialogues": {"dataset": "d", "video_id": "good", "dialogue_id": "x"},
        "proassist_dst": dst(video_uid="good"),
        "proassist_generated": {
            "video_uid": "good",
            "parsed_video_anns": {"dataset": "ego4d"},
            "conversations": [{"conversation": [{"role": "user", "time": 1, "content": "Hi"}]}],
        },
    }[source]
    corpus = read(tmp_path, source, record, good)
    assert [dialogue.video_id for dialogue in corpus.dialogues] == ["good"]
    [quarantined] = corpus.quarantined
    assert quarantined.field == field
    assert reason in quarantined.reason
    assert "\n" not in str(quarantined)


def test_one_bad_conversation_does_not_take_its_siblings_along(tmp_path: Path) -> None:
    talks: list[Any] = [{"user_type": "no_talk", "conversation": [{"role": "user", "time": 1, "content": "Hi"}]}]
    talks += [{"user_type": "no_talk", "conversation": 3}, None]
    video = {"video_uid": "v", "parsed_video_anns": {"dataset": "ego4d"}, "conversations": talks}
    corpus = read(tmp_path, "proassist_generated", video)
    assert [dialogue.dialogue_id for dialogue in corpus.dialogues] == ["no_talk_0"]
    assert [(record.dataset, record.id) for record in corpus.quarantined] == [
        ("ego4d", "v/no_talk_1"),
        ("ego4d", "v/user_2"),
    ]


def test_an_entry_of_a_folder_that_is_no_record_does_not_take_the_others_along(tmp_path: Path) -> None:
    entries = {"v1": "soon", "v2": {"dataset": "home", "turns": [{"time": 1, "role": "user", "text": "Hi"}]}}
    (tmp_path / "dialogues.json").write_text(json.dumps(entries))
    corpus = load_dialogues(DataSettings(source="folder", path=tmp_path))
    assert [dialogue.video_id for dialogue in corpus.dialogues] == ["v2"]
    assert [(record.id, record.reason) for record in corpus.quarantined] == [("v1", "is missing")]


def test_the_second_record_with_the_same_ids_is_quarantined(tmp_path: Path) -> None:
    corpus = read(tmp_path, "canonical", canonical(), canonical(goal="Other"), canonical(dialogue_id="second"))
    assert [(d.dialogue_id, d.goal) for d in corpus.dialogues] == [("main", "Make tea"), ("second", "Make tea")]
    assert [(q.id, q.field) for q in corpus.quarantined] == [("v1/main", "dialogue_id")]


def test_times_past_the_end_are_clamped_up_to_half_a_second_and_quarantined_beyond(tmp_path: Path) -> None:
    turns = [{"time": time, "role": "user", "text": str(time)} for time in (20.0, 20.5, 20.6)]
    [dialogue] = read(tmp_path, "canonical", canonical(turns=turns)).dialogues
    [(_, timeline)], quarantined = place_all([dialogue], lambda _: None)
    assert timeline[39].user == ("20.0", "20.5")
    assert [(event.id, event.field) for event in quarantined] == [("v1/main", "user turn '20.6'")]


def test_a_video_of_unknown_length_is_as_long_as_its_events(tmp_path: Path) -> None:
    turns = [{"time": 3.0, "role": "assistant", "text": str(n)} for n in range(3)]
    [dialogue] = read(tmp_path, "canonical", canonical(duration=None, steps=[], turns=turns)).dialogues
    [(_, timeline)], quarantined = place_all([dialogue], lambda _: None)
    assert sorted(timeline.events) == [5, 6, 7]
    assert timeline.num_frames == 8
    assert not quarantined


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"source": "ego5d"}, "data.source: 'ego5d' must be one of canonical, dialogues, folder"),
        ({"datasets": ("garage",)}, "data.datasets: 'garage' must be one of kitchen"),
        ({"holdout": ("v9",)}, "data.holdout: no dialogue is about video 'v9'"),
        ({"holdout": 2}, "data.holdout: 2 of 1 recordings without a split of their own cannot be held out"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(tmp_path: Path, settings: dict[str, Any], sentence: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(canonical()))
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        load_dialogues(DataSettings(**({"source": "canonical", "path": tmp_path} | settings)))


def test_a_missing_path_an_empty_folder_and_unreadable_files_are_named(tmp_path: Path) -> None:
    def fails(path: Path, sentence: str, source: str = "canonical", **settings: Any) -> None:
        with pytest.raises(DataError, match=re.escape(sentence)):
            load_dialogues(DataSettings(source=source, path=path, **settings))

    fails(tmp_path / "nowhere", "nowhere does not exist")
    fails(tmp_path, "holds no *.jsonl or *.jsonl.gz")
    (tmp_path / "dialogues.json").write_text('{"v1": ')
    fails(tmp_path, "dialogues.json is not valid JSON", source="folder")
    (tmp_path / "cut.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00cut")
    fails(tmp_path / "cut.jsonl.gz", "cut.jsonl.gz cannot be read")
    (tmp_path / "a.jsonl").write_text(json.dumps(canonical()))
    fails(tmp_path / "a.jsonl", "films does not exist", videos=tmp_path / "films")


def test_held_out_videos_are_the_test_split(tmp_path: Path) -> None:
    records = [canonical(video_id=f"v{n}") for n in range(10)]
    named = read(tmp_path, "canonical", *records, holdout=("v3", "v7"))
    assert {d.video_id for d in named.split("test")} == {"v3", "v7"}
    assert len(named.split("train")) == 8
    drawn = read(tmp_path, "canonical", *records, holdout=3)
    reversed_order = read(tmp_path, "canonical", *records[::-1], holdout=3)
    assert len(drawn.split("test")) == 3
    assert {d.video_id for d in drawn.split("test")} == {d.video_id for d in reversed_order.split("test")}


def test_a_split_of_the_source_stays_under_the_projects_name(tmp_path: Path) -> None:
    corpus = read(tmp_path, "canonical", canonical(split="val"), canonical(video_id="v2"), holdout=1)
    assert [(d.video_id, d.split) for d in corpus.dialogues] == [("v1", "validation"), ("v2", "test")]
    assert corpus.split("val") == corpus.split("validation") == corpus.dialogues[:1]


def test_proassist_files_say_their_split_in_their_name(tmp_path: Path) -> None:
    for name in ("train_filtered", "val", "test"):
        (tmp_path / f"{name}.json").write_text(json.dumps([dst(video_uid=name)]))
    corpus = load_dialogues(DataSettings(source="proassist_dst", path=tmp_path))
    splits = {"train_filtered": "train", "val": "validation", "test": "test"}
    assert {d.video_id: d.split for d in corpus.dialogues} == splits


turns = st.builds(
    Turn,
    role=st.sampled_from(["user", "assistant"]),
    time=st.integers(0, 400).map(lambda n: n / 4),
    text=st.text(min_size=1).filter(lambda text: "\ud800" not in text),
)


@given(spoken=st.lists(turns), spans=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=4))
def test_own_records_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, spoken: list[Turn], spans: list[tuple[int, int]]
) -> None:
    steps = tuple(Step(id=f"S{n}", name="do", start=a, end=a + b) for n, (a, b) in enumerate(spans, 1))
    ordered = tuple(sorted(spoken, key=lambda turn: turn.time))
    written = Dialogue(dataset="d", video_id="v", dialogue_id="x", split="validation", steps=steps, turns=ordered)
    file = tmp_path_factory.mktemp("own") / "sessions.jsonl"
    file.write_text(to_jsonl([written]), encoding="utf-8")
    assert load_dialogues(DataSettings(source="dialogues", path=file)).dialogues == [written]
