"""Batches of text alone: what clips say and track, without their frames.

A model learns from them to read its context: which step is next, and what it is called. They take fewer tokens than
clips, and nothing in them is seen or decided.
"""

import random

import numpy as np

from prospect.data.batches import Collator
from prospect.data.clips import Clip, clip_sequence, started_at
from prospect.dialogue.sequence import FrameSequence, SequenceBuilder, TextTask, without_frames
from prospect.hashing import derived_seed

LATER_START_SHARE = 0.5
"""Share of clips that begin at a later frame, so that contexts show every state that a task goes through."""


class TextCollator(Collator):
    """Turns clips into batches whose only labels are the tokens of utterances and summaries.

    Deltas stand in them and are no labels: which step moves is to be seen, and not to be guessed from the text.

    Args:
        builder: tokenizer, context and tokens a frame.
        dim: D of the embeddings, none of which is read.
        seed: of the draws, with the epoch.
        lookups: whether batches say where the words of a step's name stand in its line.
    """

    def __init__(self, builder: SequenceBuilder, dim: int, seed: int, lookups: bool = False) -> None:
        super().__init__(builder, self._unread, None, lookups=lookups)
        self._dim, self._seed = dim, seed

    def view(self, clip: Clip, epoch: int) -> tuple[Clip, set[int] | None]:
        """The clip from the frame on that this epoch draws."""
        rng = random.Random(derived_seed("text-start", self._seed, epoch, clip.id))
        later = rng.random() < LATER_START_SHARE
        return started_at(
            clip, rng.randrange(clip.start, clip.stop) if later else clip.start, self.builder.settings
        ), set()

    def sequence(self, clip: Clip) -> FrameSequence:
        sequence = without_frames(clip_sequence(clip, self.builder))
        for position, task in enumerate(sequence.text_tasks):
            if task is TextTask.DST:
                sequence.text_tasks[position] = TextTask.NONE
        return sequence

    def features(self, clip: Clip) -> np.ndarray:
        """float16 [0, D]."""
        return np.zeros((0, self._dim), np.float16)

    def _unread(self, video_id: str, start: int, stop: int) -> np.ndarray:
        raise AssertionError(f"frames {start} to {stop} of {video_id} are not shown")
