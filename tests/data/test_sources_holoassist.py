"""HoloAssist's own annotations, in the layout of `data-annotation-trainval-v1_1.json`."""

import json
from pathlib import Path
from typing import Any

import pytest

from prospect.data.sources import Corpus, DataSettings, load_dialogues
from prospect.dialogue.schema import Annotation, Dialogue, Turn


def event(label: str, start: float, end: float, **attributes: str) -> dict[str, Any]:
    names = {name.replace("_", " "): value for name, value in attributes.items()}
    return {"id": 1, "label": label, "start": start, "end": end, "type": "range", "attributes": names}


def said(start: float, purpose: str, text: str, sure: str = "none") -> dict[str, Any]:
    how = {"Conversation_Purpose": purpose, "Transcription": text, "Transcription_Confidence": sure}
    return event("Conversation", start, start + 1, **how)


def did(start: float, verb: str, noun: str, **more: str) -> dict[str, Any]:
    shape = {"Action_Correctness": "Correct Action", "Incorrect_Action_Explanation": "none", "Adjective": "none"}
    return event("Fine grained action", start, start + 1, Verb=verb, Noun=noun, **(shape | more))


EVENTS = [
    event("Narration", 0, 30, **{"Long form description": "The student does all."}),
    said(1.5, "instructor-start-conversation_describing high-level instruction", "Take the battery."),
    did(1.0, "look", "camera"),
    event("Coarse grained action", 8.0, 12.0, Action_sentence="The student closes the lid.", Verb="close"),
    event("Coarse grained action", 2.0, 7.5, Action_sentence="The student changes the battery.", Verb="change"),
    did(3.0, "insert", "battery_pack", Adjective="red"),
    did(
        9.0,
        "close",
        "lid",
        Action_Correctness="Wrong Action, corrected by student",
        Incorrect_Action_Explanation="It is upside down.",
    ),
    said(4.0, "student-start-conversation_ask questions", "This one?"),
    said(4.5, "instructor-reply-to-student_confirming past or future action", "Yes."),
    said(6.0, "instructor-start-conversation_other", "*unintelligible* on."),
    said(6.5, "student-start-conversation_other", "One older?", sure="low-confidence-transcription"),
]


def read(folder: Path, *videos: Any) -> Corpus:
    (folder / "annotations.json").write_text(json.dumps(videos))
    return load_dialogues(DataSettings(source="holoassist", path=folder / "annotations.json"))


def record(*events: Any) -> dict[str, Any]:
    metadata = {"duration": {"raw": "00:00:30.47", "seconds": 30}, "video": {"fps": 29.78}}
    return {"video_name": "R1-DSLR", "taskType": "change battery", "videoMetadata": metadata, "events": list(events)}


def test_events_become_steps_turns_and_lines(tmp_path: Path) -> None:
    corpus = read(tmp_path, record(*EVENTS))
    assert not corpus.quarantined
    [dialogue] = corpus.dialogues
    assert (dialogue.dataset, dialogue.video_id, dialogue.goal) == ("holoassist", "R1-DSLR", "change battery")
    assert (dialogue.duration, dialogue.split) == (30, "train")
    assert [(step.id, step.name, step.start, step.end) for step in dialogue.steps] == [
        ("S1", "The student changes the battery.", 2.0, 7.5),
        ("S2", "The student closes the lid.", 8.0, 12.0),
    ]
    assert dialogue.turns == (
        Turn(role="assistant", time=1.5, text="Take the battery.", labels="start|describing high-level instruction"),
        Turn(role="user", time=4.0, text="This one?", labels="start|ask questions"),
        Turn(role="assistant", time=4.5, text="Yes.", labels="reply|confirming past or future action"),
    )
    assert dialogue.annotations == (
        Annotation(start=1.0, end=2.0, text="look camera"),
        Annotation(start=2.0, end=7.5, text="The student changes the battery."),
        Annotation(start=3.0, end=4.0, text="insert red battery pack", depth=1),
        Annotation(start=8.0, end=12.0, text="The student closes the lid."),
        Annotation(start=9.0, end=10.0, text="close lid", depth=1, mistake="It is upside down."),
    )


@pytest.mark.parametrize(
    ("broken", "field"),
    [
        (said(1.0, "narrator-start_other", "Hm."), "attributes.Conversation Purpose"),
        (event("Coarse grained action", 3, 5), "attributes.Action sentence"),
        ({"label": "Sleeping", "start": 1, "end": 2}, "label"),
        (did(-1.0, "take", "pen"), "start"),
    ],
)
def test_a_broken_event_is_quarantined_alone(tmp_path: Path, broken: dict[str, Any], field: str) -> None:
    corpus = read(tmp_path, record(broken, *EVENTS))
    assert [len(dialogue.turns) for dialogue in corpus.dialogues] == [3]
    [quarantined] = corpus.quarantined
    assert (quarantined.dataset, quarantined.id) == ("holoassist", "R1-DSLR")
    assert quarantined.field == f"events.0.{field}"


def test_a_video_without_events_is_named(tmp_path: Path) -> None:
    [quarantined] = read(tmp_path, {"video_name": "R2"}).quarantined
    assert (quarantined.id, quarantined.field) == ("R2", "events")


def of_record(shared_data: Path, tmp_path: Path) -> tuple[Dialogue, Dialogue]:
    """One real video, read from its own annotations and from the canonical corpus."""
    raw = json.loads((shared_data / "proassist" / "proassist_generated_records.json").read_text())
    [video] = [r["parsed_video_anns"]["original_ann"] for r in raw if r["parsed_video_anns"]["dataset"] == "holoassist"]
    for happened in video["events"]:
        if happened["label"] == "Conversation":  # ProAssist moved each utterance to its middle
            happened["start"] = round(2 * happened["start"] - happened["end"], 3)
    canonical = DataSettings(source="canonical", path=shared_data / "prepared" / "holoassist.jsonl.gz")
    [same] = [d for d in load_dialogues(canonical).dialogues if d.video_id == video["video_name"]]
    [dialogue] = read(tmp_path, video).dialogues
    return dialogue, same


def test_a_real_video_reads_as_in_the_canonical_corpus(shared_data: Path, tmp_path: Path) -> None:
    dialogue, same = of_record(shared_data, tmp_path)
    assert dialogue.model_copy(update={"annotations": ()}) == same
    assert sum(line.depth == 0 for line in dialogue.annotations) == len(dialogue.steps) == 9
    assert sum(bool(line.mistake) for line in dialogue.annotations) == 5
