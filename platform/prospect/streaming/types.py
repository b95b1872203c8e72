"""What goes into the engine and what it says: plain records that the protocol sends and the evaluator scores."""

from dataclasses import dataclass
from typing import Literal

from prospect.dialogue.state import Delta, TaskState

Silence = Literal["threshold", "cooldown", "hysteresis"]
"""Why nothing was said: the probability was too low, the last utterance is too recent, or the probability has not
come down since."""


@dataclass(frozen=True)
class SessionSpec:
    """What a session starts from."""

    goal: str = ""
    steps: tuple[str, ...] = ()
    knowledge: str = ""
    state: TaskState | None = None
    """None: nothing started."""
    utterances: tuple[tuple[str, str], ...] = ()
    """(role, text) of what was said before, oldest first; for a session that continues another."""
    track: bool = True
    """False: the recipe is background, its state is not tracked."""
    dataset: str = ""
    """Whose calibrated thresholds the session takes; one that the model does not know takes its default ones."""
    speak_threshold: float | None = None
    """None: the model's calibrated threshold, else the configured one."""
    update_threshold: float | None = None
    seed: int | None = None
    """Of the session's random numbers; None: of its id and `streaming.sampling.seed`."""
    summary: str | None = None
    """Of the progress before the session; shown where the context strategy asks for summaries."""
    oracle: tuple[tuple[int, str], ...] = ()
    """The reference's deltas by frame, which `summarize_with_dst` tells the model where `context.published` is set;
    for evaluation."""

    @property
    def tracked(self) -> bool:
        """Whether there is a state to update."""
        return self.track and bool(self.steps)


@dataclass(frozen=True)
class Decision:
    """Everything decided at one frame of one session."""

    frame: int
    """Index in the session's stream, from 0; decided at (frame + 1) / fps seconds."""
    p_speak: float
    p_update: float
    """0 without a recipe: there is nothing to update."""
    state: TaskState
    """The tracked state after this frame's delta."""
    delta: Delta = ()
    utterance: str | None = None
    readout: TaskState | None = None
    """The most probable state reachable by legal transitions; None without a recipe or a state head."""
    fast: bool = True
    """Decided by trunk and heads alone: `lm_head` was not touched."""
    silence: Silence | None = None
    """Why nothing was said; None where something was, or where the model wanted to and had no words."""


@dataclass(frozen=True)
class TextPiece:
    """A part of the utterance that is being generated at `frame`."""

    frame: int
    text: str


@dataclass(frozen=True)
class Refreshed:
    """The context was rebuilt before `frame`."""

    frame: int
    tokens_before: int
    tokens_after: int
    summary: str | None = None
    """Of the progress, where the model was asked for one."""
    oracle: bool = False
    """Whether it was told the reference's state then."""


@dataclass(frozen=True)
class Failed:
    """The session met a defect of ours and is closed; the others go on."""

    reason: str


Event = Decision | TextPiece | Refreshed | Failed
"""What one step of the engine can say about one session."""
