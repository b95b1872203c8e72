"""Seeded draws about clips: by data set, video, dialogue and clip, whatever ids a source gives its dialogues."""

from collections.abc import Iterator

import pytest

from prospect.data.batches import sampled_frames
from prospect.data.clips import Clip, split_clips
from prospect.data.settings import ClipSettings, LabelSamplingSettings
from prospect.dialogue.schema import Dialogue
from prospect.dialogue.sequence import SequenceBuilder
from tests.factories import CONTEXT, tea_dialogue, timeline_of, tiny_vocabulary

VIDEOS = 300


def cut(settings: ClipSettings) -> Iterator[list[Clip]]:
    """The clips of the same dialogue in many videos, which all call it by the same name."""
    builder = SequenceBuilder(tiny_vocabulary(), CONTEXT, 1)
    for number in range(VIDEOS):
        dialogue = tea_dialogue().model_copy(update={"video_id": f"v{number}", "dialogue_id": "main"})
        yield split_clips(dialogue, timeline_of(dialogue), builder, settings)


@pytest.mark.parametrize("seed", range(3))
def test_the_asked_share_of_dialogues_starts_at_a_random_frame(seed: int) -> None:
    started = [len(clips) - 1 for clips in cut(ClipSettings(seed=seed))]
    assert 0.2 < sum(started) / VIDEOS < 0.4
    before = {len(clips) - 1 for clips in cut(ClipSettings(seed=seed, draws=1))}
    assert len(before) == 1, "all or none, by the id that they share"


def test_they_start_at_different_frames() -> None:
    starts = {clips[1].start for clips in cut(ClipSettings(random_start_share=1.0))}
    assert len(starts) > 10


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"video_id": "a"}, {"video_id": "b"}),
        ({"dataset": "home"}, {"dataset": "work"}),
        ({"dialogue_id": "talk_more"}, {"dialogue_id": "no_talk"}),
    ],
)
def test_clips_of_equal_length_draw_their_negatives_each_for_itself(one: dict[str, str], other: dict[str, str]) -> None:
    first, second = (silent(tea_dialogue().model_copy(update=names)) for names in (one, other))
    assert first != second
    assert first == silent(tea_dialogue().model_copy(update=one)), "the same clip draws the same again"


def silent(dialogue: Dialogue) -> list[list[int]]:
    """The frames with labels of the dialogue's whole clip, in some epochs."""
    builder = SequenceBuilder(tiny_vocabulary(), CONTEXT, 1)
    [clip] = split_clips(dialogue, timeline_of(dialogue), builder, ClipSettings(random_start_share=0))
    return [sorted(sampled_frames(clip, LabelSamplingSettings(), epoch)) for epoch in range(4)]
