"""What goes into the engine and the events that come out: records that the protocol sends and the evaluator scores."""

from dataclasses import dataclass
from typing import Literal

from prospect.dialogue.prompt import StrategyName
from prospect.dialogue.state import Delta, TaskState

Silence = Literal["threshold", "cooldown", "hysteresis"]
"""Why nothing was said: `p_speak` is too low, the last utterance too recent, or `p_speak` has not come down since."""


@dataclass(frozen=True)
class SessionSpec:
    """What a session starts from."""

    goal: str = ""
    steps: tuple[str, ...] = ()
    knowledge: str = ""
    state: TaskState | None = None
    """None: no step has started."""
    utterances: tuple[tuple[str, str], ...] = ()
    """(role, text) of earlier utterances, oldest first; for a session that continues another."""
    track: bool = True
    """False: the recipe is background, its state is not tracked."""
    dataset: str = ""
    """Data set whose calibrated thresholds the session takes; for an unknown one, the model's default thresholds."""
    speak_threshold: float | None = None
    """None: the model's calibrated threshold, else the configured one."""
    update_threshold: float | None = None
    strategy: StrategyName | None = None
    """Context strategy of this session; None: the engine's."""
    seed: int | None = None
    """Seed of the session's random numbers; None: derived from its id and `streaming.sampling.seed`."""
    summary: str | None = None
    """Summary of the progress before the session; shown if the context strategy asks for summaries."""
    oracle: tuple[tuple[int, str], ...] = ()
    """(frame, delta) of the reference, which `summarize_with_dst` tells the model if `context.published` is set; for
    evaluation only."""
    told: bool = False
    """Whether the state follows `oracle` at every frame instead of the model; for evaluation only."""

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
    """0 without a recipe."""
    state: TaskState
    """The tracked state after this frame's delta."""
    delta: Delta = ()
    utterance: str | None = None
    readout: TaskState | None = None
    """The most probable state that legal transitions reach; None without a recipe or a trained state head."""
    fast: bool = True
    """Whether trunk and heads alone decided, without `lm_head`."""
    silence: Silence | None = None
    """Why nothing was said; None if something was, or if the model wanted to speak and had no words."""


@dataclass(frozen=True)
class TextPiece:
    """A piece of the utterance that is being generated at `frame`."""

    frame: int
    text: str


@dataclass(frozen=True)
class Refreshed:
    """The context was rebuilt before `frame`."""

    frame: int
    tokens_before: int
    tokens_after: int
    summary: str | None = None
    """Summary of the progress, if the model was asked for one."""
    oracle: bool = False
    """Whether the model was told the reference's state for the summary."""


@dataclass(frozen=True)
class Failed:
    """The session met a defect of ours and is closed; other sessions go on."""

    reason: str


EngineEvent = Decision | TextPiece | Refreshed | Failed
"""What a step of the engine can say about a session."""
