"""What goes into the engine and what it says: plain records that the protocol sends and the evaluator scores."""

from dataclasses import dataclass

from prospect.dialogue.state import Delta, TaskState


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
    illegal: Delta = ()
    """Transitions that the model wrote and the state machine refused."""


@dataclass(frozen=True)
class TextPiece:
    """A part of the utterance that is being generated at `frame`."""

    frame: int
    text: str


@dataclass(frozen=True)
class Refreshed:
    """The context was rebuilt from the state before `frame`."""

    frame: int
    tokens_before: int
    tokens_after: int


@dataclass(frozen=True)
class Failed:
    """The session met a defect of ours and is closed; the others go on."""

    reason: str


Event = Decision | TextPiece | Refreshed | Failed
"""What one step of the engine can say about one session."""
