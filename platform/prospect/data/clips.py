"""Clips: spans of one video and one dialogue that fit the context, with absolute frame indices throughout."""

import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from prospect.data.settings import ClipSettings
from prospect.dialogue.prompt import Context, ContextSettings
from prospect.dialogue.schema import Dialogue
from prospect.dialogue.sequence import FrameSequence, SequenceBuilder
from prospect.dialogue.state import StatePolicy, TaskState
from prospect.dialogue.timeline import FrameEvents, Timeline
from prospect.errors import DataError
from prospect.hashing import derived_seed


@dataclass(frozen=True)
class Clip:
    """A span [start, stop) of decided frames, everything that stands before it, and the events within.

    All frame indices are absolute; `row` is the one helper that converts.
    """

    id: str
    dialogue: Dialogue
    start: int
    stop: int
    tail_frames: int
    initial_state: TaskState
    utterances: tuple[tuple[str, str], ...]
    events: dict[int, FrameEvents]
    states: tuple[TaskState, ...]
    """The state after each decided frame's delta."""
    summary: str | None = None
    """Of the progress before `start`; stands in its context."""
    closing_summary: str | None = None
    """Of the progress before `stop`; asked for behind the last frame, which is shown once more."""
    num_tokens: int | None = None
    """Tokens of its sequence, counted where clips are cut to a length."""

    @property
    def first_row(self) -> int:
        """The first frame that the clip shows: its tail's, or `start`."""
        return self.start - self.tail_frames

    def row(self, frame: int) -> int:
        """Absolute frame -> index into the features of [first_row, stop)."""
        return frame - self.first_row

    def __len__(self) -> int:
        return self.stop - self.start


class Cut(NamedTuple):
    """Where a clip lies in its dialogue, and what it took to find out."""

    start: int
    stop: int
    num_tokens: int
    """Of its sequence."""
    asks: bool
    """Whether it ends with a summary."""


def clip_context(clip: Clip, builder: SequenceBuilder) -> Context:
    return builder.context(
        goal=clip.dialogue.goal,
        steps=clip.dialogue.step_names,
        state=clip.initial_state,
        knowledge=clip.dialogue.knowledge,
        summary=clip.summary,
        utterances=clip.utterances,
        tail_frames=clip.tail_frames,
    )


def clip_sequence(clip: Clip, builder: SequenceBuilder) -> FrameSequence:
    """The clip as tokens; its images are frames [clip.first_row, clip.stop), and the last again for a summary."""
    frames = (clip.events.get(frame, FrameEvents()) for frame in range(clip.start, clip.stop))
    return builder.sequence(clip_context(clip, builder), frames, clip.closing_summary)


def make_clip(
    dialogue: Dialogue,
    timeline: Timeline,
    start: int,
    stop: int,
    settings: ContextSettings,
    policy: StatePolicy,
    draws: int = 2,
) -> Clip:
    """The clip of frames [start, stop): initial state, last utterances and tail come from what lies before."""
    first = dialogue.first_frame or 0
    tail = min(start - first, settings.max_tail_frames)
    said = timeline.utterances_before(start)
    state = timeline.state_before(start, policy)
    return Clip(
        id=f"{_key(dialogue, draws)}@{start}-{stop}",
        dialogue=dialogue,
        start=start,
        stop=stop,
        tail_frames=tail,
        initial_state=state,
        utterances=tuple(said[max(0, len(said) - settings.last_utterances) :]),
        events={frame: event for frame, event in timeline.events.items() if start <= frame < stop},
        states=tuple(timeline.states_from(state, start, stop, policy)),
    )


def _key(dialogue: Dialogue, draws: int) -> str:
    """What draws about the dialogue are keyed by, see `ClipSettings.draws`."""
    whole = f"{dialogue.dataset}/{dialogue.video_id}/{dialogue.dialogue_id}"
    return dialogue.dialogue_id if draws == 1 else whole


def split_clips(
    dialogue: Dialogue,
    timeline: Timeline,
    builder: SequenceBuilder,
    clips: ClipSettings,
    policy: StatePolicy = "strict",
) -> list[Clip]:
    """Cuts a dialogue into clips whose sequences fit `context.max_seq_len`; every frame in exactly one.

    Raises:
        DataError: one frame with its events and its context does not fit, or there is nothing to learn but a summary
            and `clips.summaries` is off.
    """
    cuts = find_cuts(dialogue, timeline, builder, clips, policy)
    return clips_at(cuts, dialogue, timeline, builder.settings, clips, policy)


def find_cuts(
    dialogue: Dialogue,
    timeline: Timeline,
    builder: SequenceBuilder,
    clips: ClipSettings,
    policy: StatePolicy = "strict",
) -> list[Cut]:
    """Where `split_clips` cuts: what takes long, since it counts the tokens of every frame. Raises as `split_clips`."""
    if dialogue.summary_only and not clips.summaries:
        raise DataError(
            f"{dialogue.dialogue_id}: it says nothing but a summary of progress; set training.clips.summaries=true",
            field="training.clips.summaries",
        )
    cutter = _Cutter(dialogue, timeline, builder, clips, policy)
    first, stop = _span(dialogue, timeline)
    borders = [first, *_random_start(dialogue, first, stop, clips), stop]
    return [cut for low, high in itertools.pairwise(borders) for cut in cutter.fitting(low, high)]


def clips_at(
    cuts: Iterable[Cut],
    dialogue: Dialogue,
    timeline: Timeline,
    context: ContextSettings,
    clips: ClipSettings,
    policy: StatePolicy = "strict",
) -> list[Clip]:
    """The clips of a dialogue that was cut before."""

    def clip_at(cut: Cut) -> Clip:
        clip = _clip(dialogue, timeline, cut.start, cut.stop, context, clips, policy)
        closing = timeline.progress_before(cut.stop) if cut.asks else None
        return replace(clip, closing_summary=closing, num_tokens=cut.num_tokens)

    return [clip_at(cut) for cut in cuts]


def whole_clip(
    dialogue: Dialogue, timeline: Timeline, context: ContextSettings, policy: StatePolicy = "strict"
) -> Clip:
    """The dialogue's whole span as one clip, whatever its length: what a live session would see."""
    return make_clip(dialogue, timeline, *_span(dialogue, timeline), context, policy)


def _span(dialogue: Dialogue, timeline: Timeline) -> tuple[int, int]:
    """The frames that the dialogue uses, the end exclusive."""
    return dialogue.first_frame or 0, min(dialogue.last_frame or timeline.num_frames, timeline.num_frames)


def _random_start(dialogue: Dialogue, first: int, stop: int, settings: ClipSettings) -> list[int]:
    rng = random.Random(derived_seed("clip-start", settings.seed, _key(dialogue, settings.draws)))
    if stop - first < 2 or rng.random() >= settings.random_start_share:
        return []
    return [rng.randrange(first + 1, stop)]


def _clip(
    dialogue: Dialogue,
    timeline: Timeline,
    start: int,
    stop: int,
    context: ContextSettings,
    settings: ClipSettings,
    policy: StatePolicy,
) -> Clip:
    clip = make_clip(dialogue, timeline, start, stop, context, policy, settings.draws)
    return replace(clip, summary=timeline.progress_before(start)) if settings.summaries else clip


@dataclass(frozen=True)
class _Cutter:
    """Cuts one dialogue."""

    dialogue: Dialogue
    timeline: Timeline
    builder: SequenceBuilder
    settings: ClipSettings
    policy: StatePolicy

    @property
    def context(self) -> ContextSettings:
        return self.builder.settings

    def fitting(self, low: int, high: int) -> Iterator[Cut]:
        """Greedy spans of [low, high), each with its own context and room for a summary, as long as they fit."""
        limit, start = self.context.max_seq_len - self._reserve(), low
        while start < high:
            before = self._clip(start, start)
            used = len(clip_context(before, self.builder).ids)
            stop = start
            while stop < high and used + (taken := self.builder.frame_length(self.timeline[stop])) <= limit:
                used, stop = used + taken, stop + 1
            if stop == start:
                raise DataError(
                    f"{self.dialogue.dialogue_id}: frame {start} with its events and its context exceeds "
                    f"context.max_seq_len={self.context.max_seq_len}; raise it",
                    field="context.max_seq_len",
                )
            summary = self._closing_summary(self._clip(start, stop))
            yield Cut(start, stop, used + self._summary_length(summary), summary is not None)
            start = stop

    def _clip(self, start: int, stop: int) -> Clip:
        return _clip(self.dialogue, self.timeline, start, stop, self.context, self.settings, self.policy)

    def _closing_summary(self, clip: Clip) -> str | None:
        """What the last assistant turn before the clip's end says of the progress, where the clip is asked for it."""
        summary = self.timeline.progress_before(clip.stop)
        return summary if self._asks(clip) and self._fits(summary) else None

    def _asks(self, clip: Clip) -> bool:
        if not self.settings.summaries or clip.stop < _span(self.dialogue, self.timeline)[1]:
            return self.settings.summaries and not self.dialogue.summary_only
        drawn = random.Random(derived_seed("clip-summary", self.settings.seed, clip.id)).random()
        return self.dialogue.summary is not None or drawn < self.settings.summary_share

    def _reserve(self) -> int:
        """Tokens that the dialogue's longest summary takes; a session keeps them free too, whatever it will say."""
        if not self.settings.summaries:
            return 0
        return max(map(self._summary_length, filter(self._fits, self.timeline.progress.values())), default=0)

    def _fits(self, summary: str | None) -> bool:
        return summary is None or len(self.builder.vocabulary.encode(summary)) <= self.context.max_summary_tokens

    def _summary_length(self, summary: str | None) -> int:
        return 0 if summary is None else self.builder.summary_length(summary)
