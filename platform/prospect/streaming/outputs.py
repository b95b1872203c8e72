"""What the engine says about a frame: the record that the protocol sends and the evaluator scores."""

from dataclasses import dataclass

from prospect.dialogue.state import Delta, TaskState


@dataclass(frozen=True)
class Decision:
    """Everything decided at one frame of one session."""

    frame: int
    """Index in the session's stream, from 0; decided at (frame + 1) / fps seconds."""
    p_speak: float
    p_update: float
    state: TaskState
    """The tracked state after this frame's delta."""
    delta: Delta = ()
    utterance: str | None = None
    readout: TaskState | None = None
    """The most probable state reachable by legal transitions; None without a recipe or a state head."""
    fast: bool = True
    """Decided by trunk and heads alone: `lm_head` was not touched."""
