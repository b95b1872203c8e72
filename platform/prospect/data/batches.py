"""Batches: clips with their features as tensors, with the flat position of every label.

B rows of S tokens; flat position = row * S + position. Labels of -100 do not count. A packed batch is one row in
which the clips stand one behind the other; a padded one has a row for each.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prospect.data.clips import Clip, clip_sequence
from prospect.data.lookups import Lookup, LookupFinder
from prospect.data.settings import LabelSamplingSettings
from prospect.dialogue.sequence import FrameSequence, SequenceBuilder, TextTask
from prospect.errors import DataError
from prospect.hashing import derived_seed

IGNORE = -100

ReadFrames = Callable[[str, int, int], np.ndarray]
"""(video_id, start, stop) -> float16 [stop - start, I, D]; `EmbeddingStore.read`."""


@dataclass
class Batch:
    """One micro-batch.

    Attributes:
        packed: one row without padding, or a row for each clip, padded on the right.
        lengths: tokens of each clip.
        input_ids: [B, S].
        frames: [R, D] a feature row for each image token, in row-major order.
        decisions: [N] flat positions of decided frames.
        speak, update: [N] 0, 1 or IGNORE.
        after_delta: [M] flat positions of deltas' stop tokens; `after_delta_speak` [M]: 0, 1 or IGNORE.
        text_positions: [P] flat positions that predict a text token; `text_targets`, `text_tasks` [P].
        step_positions: [Q] flat positions of steps' lines.
        state_frames, state_steps, state_labels: [E] index into `decisions`, index into `step_positions`, class.
        lookups, looked_up, lookup_words: [L] flat positions that look for a word, those where they find it, and the
            word; empty where nobody asked for them (`data/lookups.py`).
        guides: whether a head is guided by them, as on all other ranks, though this batch may have none.
    """

    clip_ids: list[str]
    packed: bool
    lengths: tuple[int, ...]
    input_ids: Tensor
    frames: Tensor
    decisions: Tensor
    speak: Tensor
    update: Tensor
    after_delta: Tensor
    after_delta_speak: Tensor
    text_positions: Tensor
    text_targets: Tensor
    text_tasks: Tensor
    step_positions: Tensor
    state_frames: Tensor
    state_steps: Tensor
    state_labels: Tensor
    lookups: Tensor
    looked_up: Tensor
    lookup_words: Tensor
    guides: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return sum(self.lengths)

    @property
    def attention_mask(self) -> Tensor:
        """[B, S], 1 for tokens and 0 for padding, from lengths; all 1 where packed."""
        if self.packed:
            return torch.ones_like(self.input_ids)
        positions = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        lengths = torch.tensor(self.lengths, device=self.input_ids.device)
        return (positions < lengths.unsqueeze(1)).long()

    def to(self, device: torch.device | str) -> "Batch":
        tensors: dict[str, Any] = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in tensors.items()})


def sampled_frames(clip: Clip, settings: LabelSamplingSettings, epoch: int) -> set[int]:
    """Decided frames (absolute) that the decision losses see: every event and a draw of the silence.

    The draw depends on seed, epoch and clip alone: not on ranks, order or what was drawn before.
    """
    events = {frame for frame, event in clip.events.items() if event.delta or event.utterance is not None}
    margin = range(-settings.negative_margin, settings.negative_margin + 1)
    near = {frame + distance for frame in events for distance in margin}
    silent = [frame for frame in range(clip.start, clip.stop) if frame not in near]
    count = min(len(silent), max(1, round(len(silent) * settings.negative_rate)))
    rng = random.Random(derived_seed("negatives", settings.seed, epoch, clip.id))
    return events.union(rng.sample(silent, count))


def is_watch_only(clip: Clip, settings: LabelSamplingSettings, epoch: int) -> bool:
    """Whether this epoch shows the clip without its events; one without DST labels has nothing to learn so."""
    drawn = random.Random(derived_seed("watch-only", settings.seed, epoch, clip.id)).random()
    return clip.dialogue.has_dst_labels and drawn < settings.watch_only_share


class Collator:
    """Turns clips into batches; holds what does not change from batch to batch."""

    def __init__(
        self,
        builder: SequenceBuilder,
        read_frames: ReadFrames,
        sampling: LabelSamplingSettings | None,
        packed: bool = True,
        finder: LookupFinder | None = None,
    ) -> None:
        """Choose what the batches hold.

        Args:
            builder: tokenizer, context and tokens a frame.
            read_frames: reads embeddings.
            sampling: None labels every frame, as evaluation does.
            packed: False makes padded batches.
            finder: finds lookups for packed batches.
        """
        self.builder = builder
        self.read_frames = read_frames
        self.sampling = sampling
        self.packed = packed
        self.finder = finder if packed else None

    def sequence(self, clip: Clip) -> FrameSequence:
        return clip_sequence(clip, self.builder)

    def view(self, clip: Clip, epoch: int) -> tuple[Clip, set[int] | None]:
        """The clip as this epoch shows it, and the frames whose decisions count (None: all)."""
        if clip.dialogue.summary_only:  # when the assistant spoke has been taken out
            return clip, set()
        if self.sampling is None:
            return clip, None
        if self.builder.settings.recipe and is_watch_only(clip, self.sampling, epoch):
            return replace(clip, events={}), set()
        return clip, sampled_frames(clip, self.sampling, epoch)

    def features(self, clip: Clip) -> np.ndarray:
        """float16 [rows, D]: I rows for each of the clip's frames, the tail's first; its last again for a summary."""
        frames = self.read_frames(clip.dialogue.video_id, clip.first_row, clip.stop)
        if frames.shape[1] != (expected := self.builder.tokens_per_frame):
            raise DataError(f"{clip.id}: {frames.shape[1]} tokens a frame stored, {expected} expected")
        if clip.closing_summary is not None:
            frames = np.concatenate([frames, frames[-1:]])
        return frames.reshape(-1, frames.shape[-1])

    def __call__(self, clips: Sequence[Clip], epoch: int = 0) -> Batch:
        views = [self.view(clip, epoch) for clip in clips]
        sequences = [self.sequence(clip) for clip, _ in views]
        lengths = tuple(len(sequence.ids) for sequence in sequences)
        stride = max(lengths)
        bases = [0, *itertools.accumulate(lengths)] if self.packed else range(0, stride * len(clips), stride)
        ids = torch.full((sum(lengths) if self.packed else stride * len(clips),), self.builder.vocabulary.pad)
        labels = _LabelLists()
        for base, (clip, seen), sequence in zip(bases, views, sequences, strict=False):
            ids[base : base + len(sequence.ids)] = torch.tensor(sequence.ids)
            labels.add_decisions(base, clip, sequence, seen)
            labels.add_text(base, sequence)
            if self.finder:
                labels.add_lookups(base, self.finder.find(sequence, clip, epoch))
        ids = ids.view(1 if self.packed else len(clips), -1)
        frames = torch.from_numpy(np.concatenate([self.features(clip) for clip in clips]))
        guides = self.finder is not None
        return Batch([clip.id for clip in clips], self.packed, lengths, ids, frames, **labels.tensors(), guides=guides)


class _LabelLists:
    """Collects the flat label positions of one batch."""

    FIELDS = (
        "decisions", "speak", "update", "after_delta", "after_delta_speak", "text_positions", "text_targets",
        "text_tasks", "step_positions", "state_frames", "state_steps", "state_labels", "lookups", "looked_up",
        "lookup_words",
    )  # fmt: skip

    def __init__(self) -> None:
        self.lists: dict[str, list[int]] = {name: [] for name in self.FIELDS}

    def add_decisions(self, base: int, clip: Clip, sequence: FrameSequence, seen: set[int] | None) -> None:
        lists, has_dst = self.lists, clip.dialogue.has_dst_labels
        first_decision, first_step = len(lists["decisions"]), len(lists["step_positions"])
        shown = [(step, position) for step, position in enumerate(sequence.step_positions) if position >= 0]
        lists["step_positions"] += [base + position for _, position in shown]
        decided = zip(range(clip.start, clip.stop), sequence.decision_positions, strict=False)  # none without frames
        for index, (frame, decision) in enumerate(decided):
            events = clip.events.get(frame)
            counts = seen is None or frame in seen
            speaks = int(events is not None and events.utterance is not None)
            updates = int(events is not None and bool(events.delta))
            lists["decisions"].append(base + decision)
            lists["speak"].append(speaks if counts else IGNORE)
            lists["update"].append(updates if counts and has_dst else IGNORE)
            if (after := sequence.after_delta_positions[index]) >= 0:
                lists["after_delta"].append(base + after)
                lists["after_delta_speak"].append(speaks if counts else IGNORE)
            if has_dst:
                for row, (step, _) in enumerate(shown):
                    lists["state_frames"].append(first_decision + index)
                    lists["state_steps"].append(first_step + row)
                    lists["state_labels"].append(int(clip.states[index].steps[step]))

    def add_text(self, base: int, sequence: FrameSequence) -> None:
        for position, task in enumerate(sequence.text_tasks):
            if task is not TextTask.NONE:
                self.lists["text_positions"].append(base + position - 1)
                self.lists["text_targets"].append(sequence.ids[position])
                self.lists["text_tasks"].append(int(task))

    def add_lookups(self, base: int, found: Sequence[Lookup]) -> None:
        self.lists["lookups"] += [base + lookup.position for lookup in found]
        self.lists["looked_up"] += [base + lookup.place for lookup in found]
        self.lists["lookup_words"] += [lookup.word for lookup in found]

    def tensors(self) -> dict[str, Tensor]:
        return {name: torch.tensor(values, dtype=torch.long) for name, values in self.lists.items()}
