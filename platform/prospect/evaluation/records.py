"""The decisions of a streamed dialogue beside its reference, by frame of the video: the input of all scores."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, NamedTuple

from prospect.dialogue.schema import Dialogue
from prospect.dialogue.state import Delta, StatePolicy, TaskState, Transition
from prospect.dialogue.timeline import Timeline
from prospect.errors import DataError
from prospect.streaming.types import Decision, Refreshed

Placed = tuple[Dialogue, Timeline]

View = Literal["watched", "shuffled", "blank", "untracked", "told"]
"""What the model has: the video, its frames in random order, or the same empty frame all along; the video and no task
state, or the video and the reference's state instead of its own."""


class Variant(NamedTuple):
    """One way of streaming a dialogue."""

    view: View = "watched"
    speak: float | None = None
    """Threshold; None: the model's."""
    update: float | None = None


TimedEvent = tuple[int, Transition]
"""A frame and a transition decided there."""


@dataclass(frozen=True)
class VideoDecisions:
    """One dialogue as it was streamed.

    Frames of the record from `first_frame` to the dialogue's last are scored; one of them without a decision
    counts against the state metrics.

    Raises (on construction):
        DataError: a frame was decided twice.
    """

    dialogue: Dialogue
    timeline: Timeline
    decisions: Sequence[Decision]
    first_frame: int = 0
    """Frame of the video that was frame 0 of the stream."""
    refreshes: Sequence[Refreshed] = ()
    """When its context was rebuilt; frames of the stream, as those of the decisions."""

    def __post_init__(self) -> None:
        if len(self.by_frame) != len(self.decisions):
            frames = sorted(decision.frame for decision in self.decisions)
            twice = next(frame for frame, following in pairwise(frames) if frame == following)
            raise DataError(
                f"decisions: frame {twice} of dialogue {self.dialogue.dialogue_id!r} was decided twice",
                field="decisions",
            )

    @cached_property
    def by_frame(self) -> dict[int, Decision]:
        """Decisions by frame of the video."""
        return {self.first_frame + decision.frame: decision for decision in self.decisions}

    @property
    def video(self) -> str:
        """The unit that the bootstrap draws: dialogues of one video are not independent samples."""
        return f"{self.dialogue.dataset}/{self.dialogue.video_id}"

    @property
    def frames(self) -> range:
        """The frames that are scored."""
        return scored_frames(self.dialogue, self.timeline, self.first_frame)

    @cached_property
    def utterances(self) -> dict[int, str]:
        """What the system said, by frame; an utterance of no words is silence."""
        said = {frame: decision.utterance for frame, decision in self.by_frame.items()}
        return {frame: text for frame, text in said.items() if text is not None and text.strip()}

    @cached_property
    def reference_utterances(self) -> dict[int, str]:
        """What the reference says, by frame."""
        said = {frame: self.timeline[frame].utterance for frame in self.frames}
        return {frame: text for frame, text in said.items() if text is not None}

    def events(self) -> list[TimedEvent]:
        """The system's transitions."""
        return _flatten((frame, decision.delta) for frame, decision in self.by_frame.items())

    def reference_events(self, policy: StatePolicy = "strict") -> list[TimedEvent]:
        """The reference's transitions as far as they are legal; an illegal one changes no state."""
        deltas = legal_deltas(self.timeline, policy)
        return _flatten((frame, delta) for frame, delta in deltas.items() if frame in self.frames)


def scored_frames(dialogue: Dialogue, timeline: Timeline, first_frame: int | None = None) -> range:
    """The frames of the video that a dialogue uses, from `first_frame` on; None: from the dialogue's own first."""
    if first_frame is None:
        first_frame = dialogue.first_frame or 0
    last = timeline.num_frames if dialogue.last_frame is None else min(dialogue.last_frame, timeline.num_frames)
    return range(first_frame, last)


def legal_deltas(timeline: Timeline, policy: StatePolicy = "strict") -> dict[int, Delta]:
    """The reference's deltas by frame, without illegal transitions."""
    state, deltas = TaskState.initial(timeline.num_steps), {}
    for frame in sorted(timeline.events):
        legal = []
        for transition in timeline[frame].delta:
            state, illegal = state.apply((transition,), policy)
            legal += [] if illegal else [transition]
        if legal:
            deltas[frame] = tuple(legal)
    return deltas


def _flatten(deltas: Iterable[tuple[int, Delta]]) -> list[TimedEvent]:
    return [(frame, transition) for frame, delta in sorted(deltas) for transition in delta]
