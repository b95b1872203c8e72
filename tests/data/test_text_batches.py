"""Batches of text alone: clips without their frames."""

from dataclasses import replace

import torch

from prospect.data.clips import clip_sequence, make_clip, started_at
from prospect.data.text_batches import TextCollator
from prospect.dialogue.sequence import SequenceBuilder, TextTask, without_frames
from tests.factories import CONTEXT, DIM, TOY_CONTEXT, ToyCorpus, tea_dialogue, timeline_of, tiny_vocabulary


def text_collator(toys: ToyCorpus, seed: int = 0) -> TextCollator:
    return TextCollator(SequenceBuilder(toys.vocabulary, TOY_CONTEXT, tokens_per_frame=1), DIM, seed)


def test_a_sequence_without_frames_is_its_text_in_order() -> None:
    dialogue = tea_dialogue()
    builder = SequenceBuilder(tiny_vocabulary(), CONTEXT, tokens_per_frame=2)
    clip = make_clip(dialogue, timeline_of(dialogue), 20, 50, CONTEXT, "strict")
    whole = clip_sequence(clip, builder)
    text = without_frames(whole)
    assert clip.tail_frames > 0
    assert text.ids == [token for token in whole.ids if token != builder.vocabulary.image]
    assert text.text_tasks.count(TextTask.SPEAKING) == whole.text_tasks.count(TextTask.SPEAKING) > 0
    assert text.image_positions == text.decision_positions == []


def test_a_clip_that_starts_later_is_the_clip_that_was_cut_there() -> None:
    """But for the frames of its tail, and its name."""
    dialogue = tea_dialogue()
    timeline = timeline_of(dialogue)
    whole = make_clip(dialogue, timeline, 0, 60, CONTEXT, "strict")
    for start in (0, 1, 24, 28, 45, 59):
        cut = make_clip(dialogue, timeline, start, 60, CONTEXT, "strict")
        assert started_at(whole, start, CONTEXT) == replace(cut, tail_frames=0, id=whole.id)
        middle = make_clip(dialogue, timeline, start // 2, 60, CONTEXT, "strict")
        assert started_at(middle, start, CONTEXT) == replace(cut, tail_frames=0, id=middle.id)


def test_only_utterances_are_labels_and_nothing_is_decided(toys: ToyCorpus) -> None:
    batch = text_collator(toys)(toys.clips)
    assert toys.vocabulary.image not in batch.input_ids
    assert batch.frames.shape == (0, DIM)
    assert toys.vocabulary.dst in batch.input_ids
    assert set(batch.text_tasks.tolist()) == {TextTask.SPEAKING}
    assert torch.equal(batch.input_ids.flatten()[batch.text_positions + 1], batch.text_targets)
    assert len(batch.decisions) == len(batch.after_delta) == len(batch.state_labels) == 0


def test_seed_epoch_and_clip_decide_where_a_clip_starts(toys: ToyCorpus) -> None:
    def starts(seed: int, epoch: int) -> list[int]:
        return [text_collator(toys, seed).view(clip, epoch)[0].start for clip in toys.clips]

    assert starts(0, 3) == starts(0, 3)
    assert len({tuple(starts(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    drawn = [start for epoch in range(20) for start in starts(0, epoch)]
    assert 0.4 < sum(start == 0 for start in drawn) / len(drawn) < 0.65
