"""Clips: spans of one video and one dialogue that fit the context, with absolute frame indices throughout."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pydantic import Field

from prospect.dialogue.prompt import Context, ContextSettings, build_context
from prospect.dialogue.schema import Dialogue
from prospect.dialogue.sequence import FrameSequence, build_sequence, frame_length
from prospect.dialogue.state import StatePolicy, TaskState
from prospect.dialogue.timeline import FrameEvents, Timeline
from prospect.dialogue.vocabulary import Vocabulary
from prospect.errors import DataError
from prospect.lineage import derived_seed
from prospect.settings import Settings


class ClipSettings(Settings):
    """How dialogues are cut into training clips."""

    random_start_share: float = Field(default=0.3, ge=0, le=1)
    """Share of dialogues that are cut once more at a random frame, so that a refreshed context is not new."""
    seed: int = 0


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


def clip_context(clip: Clip, vocabulary: Vocabulary, settings: ContextSettings, tokens_per_frame: int) -> Context:
    return build_context(
        vocabulary,
        goal=clip.dialogue.goal,
        steps=clip.dialogue.step_names,
        state=clip.initial_state,
        knowledge=clip.dialogue.knowledge,
        utterances=clip.utterances,
        tail_frames=clip.tail_frames,
        tokens_per_frame=tokens_per_frame,
        max_tokens=settings.max_context_tokens,
        recipe=settings.recipe,
    )


def clip_sequence(
    clip: Clip, vocabulary: Vocabulary, settings: ContextSettings, tokens_per_frame: int
) -> FrameSequence:
    """The clip as tokens; its image tokens stand for frames [clip.first_row, clip.stop)."""
    context = clip_context(clip, vocabulary, settings, tokens_per_frame)
    frames = (clip.events.get(frame, FrameEvents()) for frame in range(clip.start, clip.stop))
    return build_sequence(vocabulary, context, frames, tokens_per_frame)


def make_clip(
    dialogue: Dialogue, timeline: Timeline, start: int, stop: int, settings: ContextSettings, policy: StatePolicy
) -> Clip:
    """The clip of frames [start, stop): initial state, last utterances and tail come from what lies before."""
    first = dialogue.first_frame or 0
    tail = min(start - first, settings.max_tail_frames)
    said = timeline.utterances_before(start)
    state = timeline.state_before(start, policy)
    return Clip(
        id=f"{dialogue.dialogue_id}@{start}-{stop}",
        dialogue=dialogue,
        start=start,
        stop=stop,
        tail_frames=tail,
        initial_state=state,
        utterances=tuple(said[max(0, len(said) - settings.last_utterances) :]),
        events={frame: event for frame, event in timeline.events.items() if start <= frame < stop},
        states=_states(state, timeline, start, stop, policy),
    )


def _states(state: TaskState, timeline: Timeline, start: int, stop: int, policy: StatePolicy) -> tuple[TaskState, ...]:
    states = []
    for frame in range(start, stop):
        state, _ = state.apply(timeline[frame].delta, policy)
        states.append(state)
    return tuple(states)


def split_clips(
    dialogue: Dialogue,
    timeline: Timeline,
    vocabulary: Vocabulary,
    context: ContextSettings,
    clips: ClipSettings,
    tokens_per_frame: int,
    policy: StatePolicy = "strict",
) -> list[Clip]:
    """Cuts a dialogue into clips whose sequences fit `context.max_seq_len`; every frame in exactly one.

    Raises:
        DataError: one frame with its events and its context does not fit.
    """
    first = dialogue.first_frame or 0
    stop = min(dialogue.last_frame or timeline.num_frames, timeline.num_frames)
    borders = [first, *_random_start(dialogue, first, stop, clips), stop]
    return [
        replace(make_clip(dialogue, timeline, begin, end, context, policy), num_tokens=num_tokens)
        for low, high in itertools.pairwise(borders)
        for begin, end, num_tokens in _fitting(
            dialogue, timeline, low, high, vocabulary, context, tokens_per_frame, policy
        )
    ]


def whole_clip(
    dialogue: Dialogue, timeline: Timeline, context: ContextSettings, policy: StatePolicy = "strict"
) -> Clip:
    """The dialogue's whole span as one clip, whatever its length: what a live session would see."""
    stop = min(dialogue.last_frame or timeline.num_frames, timeline.num_frames)
    return make_clip(dialogue, timeline, dialogue.first_frame or 0, stop, context, policy)


def _random_start(dialogue: Dialogue, first: int, stop: int, settings: ClipSettings) -> list[int]:
    rng = random.Random(derived_seed("clip-start", settings.seed, dialogue.dialogue_id))
    if stop - first < 2 or rng.random() >= settings.random_start_share:
        return []
    return [rng.randrange(first + 1, stop)]


def _fitting(
    dialogue: Dialogue,
    timeline: Timeline,
    low: int,
    high: int,
    vocabulary: Vocabulary,
    settings: ContextSettings,
    tokens_per_frame: int,
    policy: StatePolicy,
) -> Iterator[tuple[int, int, int]]:
    """Greedy spans of [low, high), each with its own context, as long as they fit; start, stop and tokens."""
    start = low
    while start < high:
        empty = make_clip(dialogue, timeline, start, start, settings, policy)
        room = settings.max_seq_len - len(clip_context(empty, vocabulary, settings, tokens_per_frame).ids)
        stop = start
        while stop < high and (taken := frame_length(vocabulary, timeline[stop], tokens_per_frame)) <= room:
            room, stop = room - taken, stop + 1
        if stop == start:
            raise DataError(
                f"{dialogue.dialogue_id}: frame {start} with its events and its context exceeds "
                f"context.max_seq_len={settings.max_seq_len}; raise it",
                field="context.max_seq_len",
            )
        yield start, stop, settings.max_seq_len - room
        start = stop
