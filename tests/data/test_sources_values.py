"""One bad value costs its event alone, and nothing of a user's file is dropped without a word."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from prospect.data.labels.report import count_labels
from prospect.data.sources import Corpus, DataSettings, group_reasons, load_dialogues, to_jsonl
from prospect.data.sources.quarantine import QuarantinedRecord
from prospect.dialogue.schema import Annotation, Dialogue, Step, Turn

SAID = {"time": 1, "role": "assistant", "text": "Boil the water."}
HALF_EMOJI = "Make tea \ud83d"


def tea(**changes: Any) -> dict[str, Any]:
    steps = [{"start": 1, "end": 4, "text": "boil water"}, {"start": 5, "end": 9, "text": "add a bag"}]
    return {"dataset": "home", "goal": "Make tea", "steps": steps, "turns": [SAID]} | changes


def read(folder: Path, record: dict[str, Any], source: str = "folder") -> Corpus:
    """One record of the video `monday`."""
    if source == "folder":
        (folder / "dialogues.json").write_text(json.dumps({"monday": record}))
    else:
        (folder / "a.jsonl").write_text(json.dumps(record | {"video_id": "monday"}))
    return load_dialogues(DataSettings(source=source, path=folder))


def counts(dialogue: Dialogue) -> tuple[int, int, int]:
    return len(dialogue.turns), len(dialogue.steps), len(dialogue.annotations)


LEFT_OUT = [
    ({"turns": [SAID, SAID | {"text": "  "}]}, "turns.1.text", "'  ' must have at least 1 character", (1, 2, 0)),
    (
        {"turns": [SAID | {"role": "Assistant"}, SAID]},
        "turns.0.role",
        "'Assistant' must be 'user' or 'assistant'",
        (1, 2, 0),
    ),
    ({"turns": [SAID, SAID | {"time": -2}]}, "turns.1.time", "-2 must be greater than or equal to 0", (1, 2, 0)),
    (
        {"turns": [SAID, SAID | {"text": HALF_EMOJI}]},
        "turns.1.text",
        r"'Make tea \ud83d' must be a valid string",
        (1, 2, 0),
    ),
    ({"turns": [SAID, SAID | {"labels": HALF_EMOJI}]}, "turns.1.labels", "ud83d", (1, 2, 0)),
    ({"turns": [{"role": "user", "text": "Hi"}, SAID]}, "turns.0.time", "is missing", (1, 2, 0)),
    ({"turns": ["Hi", SAID]}, "turns.0", "'Hi' must be an object", (1, 2, 0)),
    (
        {"steps": [*tea()["steps"], {"start": 9, "end": 3, "text": "stir"}]},
        "steps.2.end",
        "3 must not lie before start (9.0 s)",
        (1, 2, 0),
    ),
    (
        {"steps": [{"start": 9, "text": "stir"}, *tea()["steps"]]},
        "steps.0.end",
        "must be given together with start",
        (1, 2, 0),
    ),
    ({"steps": [{"start": 0, "end": 1, "text": " "}, *tea()["steps"]]}, "steps.0.text", "'' must have", (1, 2, 0)),
    (
        {"annotations": [{"start": 1, "end": 2, "text": "a"}, {"start": 4, "end": 2, "text": "b"}]},
        "annotations.1.end",
        "2 must not lie before start (4.0 s)",
        (1, 2, 1),
    ),
    ({"duration": 0}, "duration", "0 must be greater than 0", (1, 2, 0)),
    ({"annotations": {"by": "me"}}, "annotations", "{'by': 'me'} must be a list", (1, 2, 0)),
    ({"goal": HALF_EMOJI}, "goal", "ud83d", (1, 2, 0)),
    ({"knowledge": HALF_EMOJI}, "knowledge", "ud83d", (1, 2, 0)),
]


@pytest.mark.parametrize(("changes", "field", "reason", "left"), LEFT_OUT, ids=[case[1] for case in LEFT_OUT])
def test_a_bad_value_loses_its_event_and_is_named(
    tmp_path: Path, changes: dict[str, Any], field: str, reason: str, left: tuple[int, int, int]
) -> None:
    corpus = read(tmp_path, tea(**changes))
    [dialogue], [record] = corpus.dialogues, corpus.quarantined
    assert counts(dialogue) == left
    assert [step.id for step in dialogue.steps] == ["S1", "S2"]
    assert (record.dataset, record.id, record.field, record.file) == ("home", "monday", field, "dialogues.json:1")
    assert reason in record.reason
    json.dumps(record.reason, ensure_ascii=False).encode()


def test_null_is_absent(tmp_path: Path) -> None:
    turns = [SAID | {"labels": None}, SAID | {"text": None}]
    steps = [{"start": 1, "end": 2, "text": "boil", "substeps": None, "errors": None}]
    corpus = read(tmp_path, tea(turns=turns, steps=steps, split=None, knowledge=None, duration=None, dialogue_id=None))
    assert counts(corpus.dialogues[0]) == (1, 1, 0)
    assert [(record.field, record.reason) for record in corpus.quarantined] == [("turns.1.text", "is missing")]


def test_a_nested_value_is_left_out_alone(tmp_path: Path) -> None:
    talk = {"conversation": [{"role": "user", "time": 1, "content": "Hi"}]}
    video = {"video_uid": "v", "conversations": [talk], "parsed_video_anns": {"dataset": "wtag", "duration": -1}}
    (tmp_path / "train.json").write_text(json.dumps([video]))
    corpus = load_dialogues(DataSettings(source="proassist_generated", path=tmp_path))
    assert corpus.dialogues[0].duration is None
    assert [record.field for record in corpus.quarantined] == ["parsed_video_anns.duration"]


def test_several_bad_events_keep_the_indices_of_the_file(tmp_path: Path) -> None:
    turns = [SAID | {"role": "cat"}, SAID, SAID | {"text": ""}, SAID | {"time": "soon", "text": " "}, SAID]
    corpus = read(tmp_path, tea(turns=turns, steps=[{"start": 2, "end": 1, "text": "x"}]))
    assert counts(corpus.dialogues[0]) == (2, 0, 0)
    fields = [record.field for record in corpus.quarantined]
    assert sorted(fields) == ["steps.0.end", "turns.0.role", "turns.2.text", "turns.3.time"]


def test_a_part_of_a_step_is_left_out_alone(tmp_path: Path) -> None:
    parts = [{"start": 1, "end": 2, "text": "fill"}, {"start": 3, "end": 2, "text": "heat"}]
    corpus = read(tmp_path, tea(steps=[{"start": 1, "end": 4, "text": "boil water", "substeps": parts}]))
    assert counts(corpus.dialogues[0]) == (1, 1, 2)
    assert [record.field for record in corpus.quarantined] == ["steps.0.substeps.1.end"]


def test_the_projects_own_records_lose_single_events_too(tmp_path: Path) -> None:
    steps = tuple(Step(id=f"S{n}", name=f"step {n}", start=n, end=n + 1) for n in (1, 2, 3))
    turns = tuple(Turn(role="user", time=t, text="Hi") for t in (1, 2))
    own = Dialogue(dataset="home", video_id="monday", dialogue_id="main", steps=steps, turns=turns)
    raw = json.loads(to_jsonl([own]))
    raw["steps"][1]["end"] = 0.5
    raw["turns"][0]["txt"] = "Hi"
    (tmp_path / "own.jsonl").write_text(json.dumps(raw))
    corpus = load_dialogues(DataSettings(source="dialogues", path=tmp_path))
    assert [(step.id, step.name) for step in corpus.dialogues[0].steps] == [("S1", "step 1"), ("S2", "step 3")]
    assert [turn.time for turn in corpus.dialogues[0].turns] == [2]
    assert sorted(record.field for record in corpus.quarantined) == ["steps.1", "turns.0.txt"]
    raw["explicit_transitions"] = [{"time": 1, "step": 2, "kind": "start"}]
    (tmp_path / "own.jsonl").write_text(json.dumps(raw))
    corpus = load_dialogues(DataSettings(source="dialogues", path=tmp_path))
    assert not corpus.dialogues
    assert corpus.quarantined[0].field == "steps"


def dst(**changes: Any) -> dict[str, Any]:
    spans = [
        {"type": "step", "id": "S1", "start_ts": 2.0, "end_ts": 8.0, "name": "Build it."},
        {"type": "step", "id": "S2", "start_ts": 9.0, "end_ts": 8.5, "name": "Show it."},
    ]
    talk = [{"role": "system", "content": "You help."}, {"role": "user", "time": 1, "content": "Hi"}]
    record = {"dataset": "toys", "video_uid": "v1", "inferred_knowledge": "Toy\n1. Build it.\n2. Show it."}
    return record | {"conversation": talk, "dst": spans} | changes


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({}, "dst.1.end_ts"),
        ({"dst": [{"type": "substep", "id": "S1", "start_ts": 1, "end_ts": 2, "name": "x"}]}, "dst.0.type"),
        (
            {"dst": None, "conversation": [*dst()["conversation"], {"role": "user", "time": 2, "content": " "}]},
            "conversation.2.content",
        ),
        (
            {
                "dst": None,
                "conversation": [
                    {"role": "system", "content": "You help."},
                    {"role": "DST_UPDATE", "time": 1, "content": [{"id": "S1", "transition": "pause"}]},
                ],
            },
            "conversation.1.content.0.transition",
        ),
    ],
)
def test_proassists_records_lose_single_events_too(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(dst(**changes)))
    corpus = load_dialogues(DataSettings(source="proassist_dst", path=tmp_path))
    assert corpus.dialogues[0].step_names == ("Build it.", "Show it.")
    assert [(record.field, record.file) for record in corpus.quarantined] == [(field, "a.jsonl:1")]


def test_generated_and_prepared_records_name_the_turn_in_the_file(tmp_path: Path) -> None:
    talk = [{"role": "user", "time": 1, "content": "Hi"}, {"role": "user", "time": 2, "content": ""}]
    video = {"video_uid": "v1", "conversations": [{"conversation": talk}], "parsed_video_anns": {"dataset": "wtag"}}
    (tmp_path / "train.json").write_text(json.dumps([video]))
    corpus = load_dialogues(DataSettings(source="proassist_generated", path=tmp_path))
    assert len(corpus.dialogues[0].turns) == 1
    assert [(record.id, record.field) for record in corpus.quarantined] == [("v1/user_0", "conversation.1.content")]
    frames = {"role": "frames", "start": 0, "end": 4}
    clip = {"dataset": "wtag", "video_uid": "v1", "start_frame_idx": 0, "end_frame_idx": 9}
    (tmp_path / "val.jsonl").write_text(json.dumps(clip | {"conversation": [frames, *talk]}))
    corpus = load_dialogues(DataSettings(source="proassist_prepared", path=tmp_path))
    assert len(corpus.dialogues[0].turns) == 1
    assert [record.field for record in corpus.quarantined] == ["conversation.2.content"]


def test_reasons_are_grouped_with_counts(tmp_path: Path) -> None:
    turns = [SAID | {"role": name} for name in ("Cat", "it's", "Dog")] + [SAID | {"time": -n} for n in (1, 2)]
    corpus = read(tmp_path, tea(turns=[*turns, SAID]))
    reasons = group_reasons(corpus.quarantined)
    assert [(reason.count, reason.field) for reason in reasons] == [(3, "turns.N.role"), (2, "turns.N.time")]
    assert str(reasons[0]).startswith("3 at turns.N.role; the first: home monday (dialogues.json:1): turns.0.role: ")
    report = count_labels(corpus, lambda _: None)
    remarks = list(report.remarks())
    assert remarks[0] == "quarantined records and events: 5, for 2 reasons"
    assert [reason["count"] for reason in json.loads(report.to_json())["reasons"]] == [3, 2]


def test_events_of_many_steps_have_one_reason() -> None:
    late = [QuarantinedRecord("d", f"v{n}", f"S{n}->complete", f"time {n}.5 s lies past the end") for n in range(9)]
    assert [reason.count for reason in group_reasons(late)] == [9]


# Fields of other tools, and fields that nobody reads


@pytest.mark.parametrize("names", [("start_time", "end_time"), ("start_ts", "end_ts"), ("start", "end")])
@pytest.mark.parametrize("turns", ["dialogue", "conversation", "turns"])
def test_synonyms_of_fields_are_read(tmp_path: Path, names: tuple[str, str], turns: str) -> None:
    steps = [{"name": "boil water", names[0]: 1, names[1]: 4}]
    record = {"dataset": "home", "goal": "Make tea", "steps": steps}
    said = {"speaker": "assistant", "start_time": 1, "content": "Boil."}
    corpus = read(tmp_path, record | {turns: [said]})
    [dialogue] = corpus.dialogues
    assert (dialogue.steps[0].start, dialogue.steps[0].end, dialogue.turns[0].text) == (1, 4, "Boil.")
    assert not corpus.ignored
    assert not corpus.quarantined


def test_annotations_are_lines_for_labelling(tmp_path: Path) -> None:
    lines = [
        {"start_time": 6, "end_time": 9, "description": "put the bag in", "mistake": "two bags"},
        {"start": 1, "end": 4, "text": "fill the kettle", "substeps": [{"start": 2, "text": "tap"}]},
    ]
    [dialogue] = read(tmp_path, tea(steps=[{"text": "boil water"}], annotations=lines)).dialogues
    assert dialogue.annotations == (
        Annotation(start=1, end=4, text="fill the kettle"),
        Annotation(start=2, text="tap", depth=1),
        Annotation(start=6, end=9, text="put the bag in", mistake="two bags"),
    )


def test_every_other_field_is_counted_and_named(tmp_path: Path) -> None:
    turns = [SAID | {"end": 3}, SAID | {"time": 2, "start": 9, "emotion": "calm"}]
    corpus = read(tmp_path, tea(fps=2, turns=turns))
    found = {(field.name, field.count, field.example) for field in corpus.ignored}
    assert found == {("fps", 1, "2"), ("turns.end", 1, "3"), ("turns.start", 1, "9"), ("turns.emotion", 1, "'calm'")}
    report = count_labels(corpus, lambda _: None)
    assert {field["name"] for field in json.loads(report.to_json())["ignored"]} == {name for name, _, _ in found}
    assert "`turns.emotion` (1 in home, such as 'calm')" in str(report.__rich__().caption)


def test_ignored_fields_are_counted_over_the_records_of_a_source(shared_data: Path) -> None:
    path = shared_data / "prepared" / "holoassist.jsonl.gz"
    corpus = load_dialogues(DataSettings(source="canonical", path=path))
    assert {(field.dataset, field.name, field.count) for field in corpus.ignored} == {
        ("holoassist", "turns.end", 31162),
        ("holoassist", "summary", 1758),
        ("holoassist", "fps", 1758),
        ("holoassist", "mistakes", 1758),
    }


def test_the_projects_own_fields_are_all_read(tmp_path: Path) -> None:
    own = Dialogue(dataset="d", video_id="v", dialogue_id="x", turns=(Turn(role="user", time=1, text="Hi"),))
    (tmp_path / "a.jsonl").write_text(own.model_dump_json())
    assert not load_dialogues(DataSettings(source="dialogues", path=tmp_path)).ignored


@pytest.mark.parametrize(
    ("written", "read_as"),
    [("training", "train"), ("dev", "validation"), ("Valid", "validation"), ("TEST", "test"), ("testing", "test")],
)
def test_splits_of_other_names_are_normalised(tmp_path: Path, written: str, read_as: str) -> None:
    assert read(tmp_path, tea(split=written)).dialogues[0].split == read_as


@pytest.mark.parametrize("split", ["fold3", "trainval"])
def test_an_unknown_split_is_refused(tmp_path: Path, split: str) -> None:
    corpus = read(tmp_path, tea(split=split))
    assert not corpus.dialogues
    [record] = corpus.quarantined
    assert (record.id, record.field) == ("monday", "split")
    assert f"'{split}' must be one of train, validation, test" in record.reason


# Files as other tools write them


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json"])
def test_a_byte_order_mark_costs_nothing(tmp_path: Path, encoding: str, name: str) -> None:
    records = [tea(video_id=video, goal="Grüße") for video in ("monday", "tuesday")]
    lines = "".join(f"{json.dumps(record, ensure_ascii=False)}\r\n" for record in records)
    data = (json.dumps(records) if name == "a.json" else lines).encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    corpus = load_dialogues(DataSettings(source="canonical", path=tmp_path / name))
    assert [dialogue.video_id for dialogue in corpus.dialogues] == ["monday", "tuesday"]
    assert not corpus.quarantined


def test_a_mark_inside_a_file_made_of_several_costs_nothing(tmp_path: Path) -> None:
    lines = [json.dumps(tea(video_id=video)).encode() for video in ("a", "b")]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(b"\xef\xbb\xbf" + line for line in lines))
    assert len(load_dialogues(DataSettings(source="canonical", path=tmp_path)).dialogues) == 2


def test_bytes_that_are_not_utf8_cost_their_event(tmp_path: Path) -> None:
    record = json.dumps(tea(video_id="monday", turns=[SAID, SAID | {"text": "Grüße"}]), ensure_ascii=False)
    (tmp_path / "a.jsonl").write_bytes(record.encode("latin-1"))
    corpus = load_dialogues(DataSettings(source="canonical", path=tmp_path))
    assert len(corpus.dialogues[0].turns) == 1
    assert [record.field for record in corpus.quarantined] == ["turns.1.text"]


def test_an_id_that_is_there_twice_has_two_records(tmp_path: Path) -> None:
    first, second, other = (json.dumps(tea(**changes)) for changes in ({}, {"goal": "Make soup"}, {"dialogue_id": "x"}))
    (tmp_path / "dialogues.json").write_text(f'{{"monday": {first}, "monday": {second}, "monday": {other}}}')
    corpus = load_dialogues(DataSettings(source="folder", path=tmp_path))
    assert [(d.dialogue_id, d.goal) for d in corpus.dialogues] == [("main", "Make tea"), ("x", "Make tea")]
    assert [(record.id, record.field) for record in corpus.quarantined] == [("monday/main", "dialogue_id")]


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('"goal": "tea", "goal": "soup"', "goal"),
        ('"turns": [{"time": 1, "role": "user", "text": "Hi", "text": "Ho"}]', "turns.0.text"),
        ('"turns": [], "turns": [{"time": 1, "role": "user", "text": "Hi"}]', "turns"),
    ],
)
@pytest.mark.parametrize("shape", ["...", "[...]"])
def test_a_field_that_is_there_twice_is_named(tmp_path: Path, text: str, field: str, shape: str) -> None:
    (tmp_path / "a.json").write_text(shape.replace("...", f'{{"dataset": "d", "video_id": "v", {text}}}'))
    corpus = load_dialogues(DataSettings(source="canonical", path=tmp_path / "a.json"))
    assert len(corpus.dialogues) == 1
    [record] = corpus.quarantined
    assert (record.id, record.field) == ("v", field)
    assert "twice" in record.reason


def test_a_list_of_records_is_a_folders_file_too(tmp_path: Path) -> None:
    (tmp_path / "dialogues.json").write_text(json.dumps([tea(video_id="monday"), tea(video_id="tuesday"), tea()]))
    corpus = load_dialogues(DataSettings(source="folder", path=tmp_path))
    assert [dialogue.video_id for dialogue in corpus.dialogues] == ["monday", "tuesday"]
    assert [(record.id, record.field) for record in corpus.quarantined] == [("dialogues.json:3", "video_id")]


@pytest.mark.parametrize("source", ["canonical", "dialogues", "holoassist", "proassist_dst", "proassist_generated"])
def test_ids_may_be_numbers(tmp_path: Path, source: str) -> None:
    turn = {"role": "user", "time": 1, "content": "Hi"}
    record = {
        "canonical": {"dataset": 7, "video_id": 17, "dialogue_id": 1},
        "dialogues": {"dataset": 7, "video_id": 17, "dialogue_id": 1},
        "holoassist": {"video_name": 17, "events": []},
        "proassist_dst": {"dataset": 7, "video_uid": 17, "conversation": [turn]},
        "proassist_generated": {
            "dataset": 7,
            "video_uid": 17,
            "conversations": [{"conversation": [turn]}],
            "parsed_video_anns": {},
        },
    }[source]
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    corpus = load_dialogues(DataSettings(source=source, path=tmp_path / "a.jsonl"))
    assert [dialogue.video_id for dialogue in corpus.dialogues] == ["17"]
    assert not corpus.quarantined


def test_a_document_of_many_videos_counts_one_row_a_video(tmp_path: Path) -> None:
    (tmp_path / "dialogues.json").write_text(json.dumps({f"v{n}": tea() for n in range(5)}))
    assert len(load_dialogues(DataSettings(source="folder", path=tmp_path, num_rows=2)).dialogues) == 2
