"""Summaries of the progress at the ends and the beginnings of clips."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prospect.data.batches import IGNORE, Collator
from prospect.data.clips import clip_sequence, split_clips
from prospect.data.settings import ClipSettings
from prospect.data.sources import DataSettings, load_dialogues, place_all
from prospect.dialogue.prompt import ContextSettings
from prospect.dialogue.schema import Dialogue, Turn
from prospect.dialogue.sequence import SequenceBuilder, TextTask
from prospect.dialogue.timeline import place
from prospect.errors import DataError
from tests.factories import CONTEXT, tea_dialogue, timeline_of, tiny_vocabulary, with_progress

VOCABULARY = tiny_vocabulary()
FRAMES = 60

progress = st.none() | st.integers(1, 30).map(lambda words: " ".join(["boil water"] * words))
turn = st.builds(
    lambda user, frame, text: (
        Turn(role="user", time=frame / 2, text="Which cup?")
        if user
        else Turn(role="assistant", time=(frame + 1) / 2, text="Good.", progress=text)
    ),
    st.booleans(),
    st.integers(0, FRAMES - 10),
    progress,
)


@st.composite
def dialogues(draw: st.DrawFn) -> Dialogue:
    turns = sorted(draw(st.lists(turn, max_size=8)), key=lambda t: t.time)
    parts = {"first_frame": draw(st.sampled_from([None, 5])), "progress": draw(progress), "summary": draw(progress)}
    return tea_dialogue().model_copy(update={"turns": tuple(turns)} | parts)


@settings(deadline=None, max_examples=25)
@given(
    dialogues(),
    st.sampled_from([440, 520, 700]),
    st.sampled_from([1, 2]),
    st.builds(ClipSettings, summaries=st.just(True), summary_share=st.sampled_from([0.0, 1.0]), seed=st.integers(0, 9)),
)
def test_clips_with_summaries_fit_hold_every_turn_once_and_say_what_was_last_known(
    dialogue: Dialogue, length: int, per_frame: int, asked: ClipSettings
) -> None:
    context = CONTEXT.model_copy(update={"max_seq_len": length, "max_summary_tokens": 60})
    timeline = place(dialogue, FRAMES)
    first = dialogue.first_frame or 0
    said = [turn.progress for turn in dialogue.turns if turn.role == "assistant"]
    spoken = [frame for frame, events in timeline.events.items() if events.utterance is not None]
    known = sorted([(first - 1, dialogue.progress), *zip(spoken, said, strict=True)], key=lambda pair: pair[0])
    known.append((FRAMES - 1, dialogue.summary))

    def last_known(frame: int) -> str | None:
        return next((text for place, text in reversed(known) if text and place < frame), None)

    clips = split_clips(dialogue, timeline, SequenceBuilder(VOCABULARY, context, per_frame), asked)

    assert [clip.start for clip in clips] == [first, *(clip.stop for clip in clips[:-1])]
    assert clips[-1].stop == FRAMES
    assert len({clip.id for clip in clips}) == len(clips)
    events = itertools.chain.from_iterable(clip.events.items() for clip in clips)
    assert list(events) == [(frame, event) for frame, event in timeline.events.items() if frame >= first]
    for clip in clips:
        sequence = clip_sequence(clip, SequenceBuilder(VOCABULARY, context, per_frame))
        assert len(sequence.ids) == clip.num_tokens <= length
        rows = len(clip) + clip.tail_frames + (clip.closing_summary is not None)
        assert len(sequence.image_positions) == rows * per_frame
        assert clip.summary == last_known(clip.start)
        expected = last_known(clip.stop)
        if clip.stop == FRAMES:
            expected = dialogue.summary or (expected if asked.summary_share else None)
        elif dialogue.summary_only:
            expected = None
        too_long = expected is not None and len(VOCABULARY.encode(expected)) > context.max_summary_tokens
        assert clip.closing_summary == (None if too_long else expected)
        assert (TextTask.SUMMARY in sequence.text_tasks) == (clip.closing_summary is not None)


def test_progress_is_that_of_the_last_assistant_turn_that_has_one() -> None:
    dialogue = with_progress(tea_dialogue())
    carried = dialogue.model_copy(update={"first_frame": 2, "progress": "We began.", "summary": "We are done."})
    timeline = place(carried, FRAMES)
    times = {
        2: "We began.",
        3: "1 s: First, boil water.",
        23: "1 s: First, boil water.",
        24: "12 s: Good. Now pour water.",
    }
    assert {frame: timeline.progress_before(frame) for frame in times} == times
    assert [timeline.progress_before(frame) for frame in (2, FRAMES)] == ["We began.", "We are done."]
    assert timeline_of(dialogue).progress_before(1) is None


def test_without_the_setting_no_clip_has_a_summary_whatever_the_record_holds() -> None:
    plain = tea_dialogue()
    full = with_progress(plain).model_copy(update={"progress": "We began.", "summary": "We are done."})
    context = CONTEXT.model_copy(update={"max_seq_len": 330})
    builder = SequenceBuilder(VOCABULARY, context, 1)
    cut = [split_clips(d, place(d, FRAMES), builder, ClipSettings()) for d in (plain, full)]
    assert [replace(clip, dialogue=plain) for clip in cut[1]] == cut[0]


def test_a_record_that_has_only_its_summary_teaches_nothing_else() -> None:
    """Its assistant turns have been taken out: that nobody speaks is no label."""
    turns = tuple(turn for turn in tea_dialogue().turns if turn.role == "user")
    dialogue = tea_dialogue().model_copy(update={"turns": turns, "steps": (), "summary": "Water boils."})
    arguments = (dialogue, place(dialogue, FRAMES), SequenceBuilder(VOCABULARY, CONTEXT, 1))
    with pytest.raises(DataError, match=r"nothing but a summary of progress; set training\.clips\.summaries=true"):
        split_clips(*arguments, ClipSettings())
    [clip] = split_clips(*arguments, ClipSettings(random_start_share=0, summaries=True))
    batch = Collator(SequenceBuilder(VOCABULARY, CONTEXT, 1), _no_features, sampling=None)([clip])
    assert set(batch.speak.tolist()) == set(batch.update.tolist()) == {IGNORE}
    assert set(batch.text_tasks.tolist()) == {TextTask.SUMMARY}


def test_summaries_of_real_records_are_learned_where_a_context_would_be_full(shared_data: Path) -> None:
    data = DataSettings(source="proassist_prepared", path=shared_data / "proassist" / "proassist_prepared_data.jsonl")
    placed, _ = place_all(load_dialogues(data).dialogues, lambda _: None)
    context = ContextSettings(max_seq_len=2600, max_summary_tokens=1000)  # of a vocabulary of 512
    asked = ClipSettings(summaries=True, summary_share=0)
    for dialogue, timeline in placed:
        clips = split_clips(dialogue, timeline, SequenceBuilder(VOCABULARY, context, 1), asked)
        assert len(clips) > 1
        said = {turn.progress for turn in dialogue.turns if turn.role == "assistant"}
        assert all(clip.closing_summary in said for clip in clips[:-1])
        assert [clip.summary for clip in clips[1:]] == [clip.closing_summary for clip in clips[:-1]]
        batch = Collator(SequenceBuilder(VOCABULARY, context, 1), _no_features, sampling=None)(clips)
        target = batch.text_targets[batch.text_tasks == TextTask.SUMMARY].tolist()
        texts = "".join(clip.closing_summary or "" for clip in clips)
        assert VOCABULARY.decode(target) == texts


def _no_features(video_id: str, start: int, stop: int) -> np.ndarray:
    return np.zeros((stop - start, 1, 4), np.float16)
