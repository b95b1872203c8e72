"""Every reader on real files: nothing is lost, and everything stands on its frame."""

import gzip
import json
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

from prospect.data.sources import DataSettings, load_dialogues, place_all
from prospect.data.sources.placement import total_frames
from prospect.dialogue.schema import Dialogue
from prospect.dialogue.state import StepState, format_delta
from prospect.dialogue.timeline import Timeline

REAL = {
    "folder": "clips/proassist_2fps",
    "proassist_generated": "proassist/proassist_generated_records.json",
    "proassist_prepared": "proassist/proassist_prepared_data.jsonl",
    "proassist_dst": "proassist/6.1-prospect_training_data.json",
}
LINES = {
    "assembly101_mistakes": 328,
    "captaincook4d": 384,
    "egoexolearn": 316,
    "epic_kitchens": 286,
    "goalstep_val": 134,
    "holoassist": 1758,
}


def boundary(time: float) -> int:
    """floor(2t) in exact decimals, independent of the package."""
    return int(Decimal(str(time)) * 2 // 1)


def expected_turns(dialogue: Dialogue, frames: int) -> list[tuple[int, str, str]]:
    """(frame, role, text) by the sentences of the event-to-frame rule."""
    placed, user, assistant = [], 0, -1
    for turn in dialogue.turns:
        if turn.role == "user":
            frame = user = min(boundary(turn.time), frames - 1)
        else:
            frame = assistant = min(max(boundary(turn.time) - 1, 0, user, assistant + 1), frames - 1)
        placed.append((frame, turn.role, turn.text))
    return placed


def actual_turns(timeline: Timeline) -> list[tuple[int, str, str]]:
    users = [(f, "user", text) for f, events in timeline.events.items() for text in events.user]
    assistants = [(f, "assistant", e.utterance) for f, e in timeline.events.items() if e.utterance is not None]
    return users + assistants


@pytest.mark.parametrize(("source", "path"), REAL.items())
def test_every_turn_appears_once_at_its_frame(shared_data: Path, source: str, path: str) -> None:
    corpus = load_dialogues(DataSettings(source=source, path=shared_data / path))
    placed, quarantined = place_all(corpus.dialogues, lambda _: None)
    assert not corpus.quarantined
    assert not quarantined
    for dialogue, timeline in placed:
        assert dialogue.turns
        assert Counter(actual_turns(timeline)) == Counter(expected_turns(dialogue, timeline.num_frames))


def test_the_real_clips_have_their_57_turns_inside_their_decoded_frames(shared_data: Path) -> None:
    frames = {"assembly101_1": 165, "egoexolearn_1": 137, "ek_1": 184, "wtag_1": 170}
    corpus = load_dialogues(DataSettings(source="folder", path=shared_data / REAL["folder"]))
    placed, quarantined = place_all(corpus.dialogues, frames.get)
    assert not quarantined
    assert sum(len(actual_turns(timeline)) for _, timeline in placed) == 57
    assert {dialogue.video_id: timeline.num_frames for dialogue, timeline in placed} == frames
    assert corpus.videos.keys() == frames.keys()
    assert corpus.missing_videos == []


def test_generated_records_give_one_dialogue_for_each_conversation(shared_data: Path) -> None:
    path = shared_data / REAL["proassist_generated"]
    corpus = load_dialogues(DataSettings(source="proassist_generated", path=path))
    raw = json.loads(path.read_text())
    assert len(corpus.dialogues) == sum(len(video["conversations"]) for video in raw) == 6
    assert [d.dialogue_id for d in corpus.dialogues[:2]] == ["talk_some_0", "talk_more_1"]
    assert [len(d.turns) for d in corpus.dialogues] == [
        len(conversation["conversation"]) for video in raw for conversation in video["conversations"]
    ]
    assert all(d.goal and d.knowledge and d.steps and not d.transitions() for d in corpus.dialogues)


def test_assembly101_counts_its_duration_from_the_videos_start_time(shared_data: Path) -> None:
    corpus = load_dialogues(
        DataSettings(
            source="proassist_generated", path=shared_data / REAL["proassist_generated"], datasets=("assembly101",)
        )
    )
    [dialogue] = corpus.dialogues
    assert dialogue.video_start == 212.7
    assert dialogue.turns[-1].time > dialogue.duration
    assert total_frames(dialogue) == boundary(212.7 + 417.46666666666664)


def test_prepared_samples_keep_frame_ranges_and_progress_and_drop_system_turns(shared_data: Path) -> None:
    corpus = load_dialogues(DataSettings(source="proassist_prepared", path=shared_data / REAL["proassist_prepared"]))
    assert [(d.dialogue_id, d.first_frame, d.last_frame) for d in corpus.dialogues] == [
        ("no_talk_0", 11, 342),
        ("talk_some_1", 11, 349),
        ("talk_more_2", 11, 349),
        ("no_talk_0", 314, 909),
        ("talk_some_1", 314, 909),
        ("talk_more_2", 314, 926),
    ]
    turns = [turn for dialogue in corpus.dialogues for turn in dialogue.turns]
    assert all(turn.progress for turn in turns if turn.role == "assistant")
    assert not any(turn.text.startswith("You are a") for turn in turns)


def test_every_transition_of_the_dst_record_is_decided_at_its_frame(shared_data: Path) -> None:
    corpus = load_dialogues(DataSettings(source="proassist_dst", path=shared_data / REAL["proassist_dst"]))
    [(dialogue, timeline)], quarantined = place_all(corpus.dialogues, lambda _: None)
    raw = json.loads((shared_data / REAL["proassist_dst"]).read_text())
    stated: dict[int, list[str]] = {}
    for turn in raw["conversation"]:
        if turn["role"] == "DST_UPDATE":
            changes = stated.setdefault(max(boundary(turn["time"]) - 1, 0), [])
            changes += [f"{change['id']}->{change['transition']}" for change in turn["content"]]
    deltas = {frame: format_delta(events.delta) for frame, events in timeline.events.items() if events.delta}
    assert deltas == {frame: "; ".join(changes) for frame, changes in stated.items()}
    assert deltas[193] == "S1->start"
    assert deltas[212] == "S1->complete; S2->start"
    assert not quarantined
    assert set(timeline.states()[-1].steps) == {StepState.COMPLETED}
    assert (dialogue.first_frame, dialogue.last_frame) == (193, 451)


@pytest.mark.parametrize(("name", "lines"), LINES.items())
def test_prepared_corpora_read_completely(shared_data: Path, name: str, lines: int) -> None:
    path = shared_data / "prepared" / f"{name}.jsonl.gz"
    corpus = load_dialogues(DataSettings(source="canonical", path=path))
    with gzip.open(path, "rt") as file:
        raw = [json.loads(line) for line in file]
    assert len(corpus.dialogues) + len(corpus.quarantined) == len(raw) == lines
    assert not corpus.quarantined
    assert [len(d.steps) for d in corpus.dialogues] == [len(record["steps"]) for record in raw]
    assert [len(d.turns) for d in corpus.dialogues] == [len(record["turns"]) for record in raw]
    assert all(turns == sorted(turns) for turns in ([turn.time for turn in d.turns] for d in corpus.dialogues))

    placed, quarantined = place_all(corpus.dialogues, lambda _: None)
    events = sum(
        len(actual_turns(timeline)) + sum(len(e.delta) for e in timeline.events.values()) for _, timeline in placed
    )
    assert events + len(quarantined) == sum(len(d.turns) + len(d.transitions()) for d in corpus.dialogues)


def test_steps_that_captaincook4d_marks_as_skipped_have_no_transitions(shared_data: Path) -> None:
    path = shared_data / "prepared" / "captaincook4d.jsonl.gz"
    corpus = load_dialogues(DataSettings(source="canonical", path=path))
    skipped = [(d, i) for d in corpus.dialogues for i, step in enumerate(d.steps) if not step.performed]
    assert len(skipped) == 287 + 8, "287 with times of -1, 8 tagged Missing Step although they have times"
    assert all(change.step != index for dialogue, index in skipped for change in dialogue.transitions())


def test_events_past_a_stated_end_are_quarantined_one_by_one(shared_data: Path) -> None:
    path = shared_data / "prepared" / "holoassist.jsonl.gz"
    corpus = load_dialogues(DataSettings(source="canonical", path=path))
    _, quarantined = place_all(corpus.dialogues, lambda _: None)
    assert len(quarantined) == 36, "HoloAssist states durations in whole seconds"
    assert all(event.field.endswith("->complete") and "beyond the video's end" in event.reason for event in quarantined)
    _, with_video = place_all(corpus.dialogues, lambda _: 10**6)
    assert not with_video, "a video that is longer than stated has room for them"


def test_a_folder_of_several_corpora_can_be_filtered(shared_data: Path) -> None:
    settings = DataSettings(source="canonical", path=shared_data / "prepared", datasets=("ego4d_goalstep",), num_rows=5)
    corpus = load_dialogues(settings)
    assert [d.dataset for d in corpus.dialogues] == ["ego4d_goalstep"] * 5
    assert load_dialogues(settings.model_copy(update={"datasets": ("ego4d",)})).dialogues == corpus.dialogues
    assert len(corpus.missing_videos) == 5
