"""The decision policy: from what the heads read at a frame to a delta, an utterance or silence."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from prospect.dialogue.state import StepState, TaskState
from prospect.model.interface import DSTModel
from prospect.streaming.settings import DstDecoder, GenerationSettings, StreamingSettings
from prospect.streaming.types import SessionSpec, Silence


def speak_after_delta(model: DSTModel, p_speak: float, hidden: Tensor) -> float:
    """Return the probability of speaking after a delta.

    The `heads` back-end keeps what it read at the image; the `token` back-end reads again.

    Args:
        model: whose back-end decides.
        p_speak: read at the frame's last image token.
        hidden: [H] at the delta's stop token.
    """
    if model.config.decision_backend == "heads":
        return p_speak
    speak, _ = model.decision_probabilities(hidden)
    return float(speak)


def read_state(logits: Tensor, shown: list[int], current: TaskState) -> TaskState:
    """Return the most probable state that legal transitions from `current` can reach.

    Args:
        logits: [len(shown), 3] of the state head.
        shown: recipe indices of the steps in the context.
        current: the tracked state; steps that are not in the context keep theirs.
    """
    steps = list(current.steps)
    for step, scores in zip(shown, logits.tolist(), strict=True):
        reachable = range(steps[step], len(StepState))
        steps[step] = StepState(max(reachable, key=scores.__getitem__))
    return TaskState(tuple(steps))


@dataclass(frozen=True)
class DecisionPolicy:
    """A session's thresholds and what else decides whether it acts."""

    speak: float
    update: float
    cooldown_frames: int
    speak_hysteresis: float | None
    update_hysteresis: float | None
    dst_decoder: DstDecoder
    sampling: GenerationSettings


def decision_policy(
    settings: StreamingSettings, calibrated: Mapping[str, Mapping[str, float]] | None, spec: SessionSpec
) -> DecisionPolicy:
    """Make a session's policy: its own thresholds come before those of `StreamingSettings.thresholds`."""
    chosen = settings.thresholds(calibrated, spec.dataset)
    return DecisionPolicy(
        speak=chosen["speak"] if spec.speak_threshold is None else spec.speak_threshold,
        update=chosen["update"] if spec.update_threshold is None else spec.update_threshold,
        cooldown_frames=settings.cooldown_frames,
        speak_hysteresis=settings.speak_hysteresis,
        update_hysteresis=settings.update_hysteresis,
        dst_decoder=settings.dst_decoder,
        sampling=settings.sampling,
    )


@dataclass
class DecisionGate:
    """Cooldown and hysteresis: keeps a session from acting at frame after frame, whatever its model says."""

    policy: DecisionPolicy
    last_spoken: int | None = None
    """Frame of the last utterance."""
    speak_armed: bool = True
    """Whether `p_speak` has come down since the last utterance."""
    update_armed: bool = True
    """Whether `p_update` has come down since the last update."""

    def allows_update(self, p_update: float) -> bool:
        """Return whether to update the state at a frame."""
        threshold, hysteresis = self.policy.update, self.policy.update_hysteresis
        self.update_armed |= _came_down(p_update, threshold, hysteresis)
        return p_update > threshold and self.update_armed

    def silence_reason(self, p_speak: float, frame: int, addressed: bool, updated: bool) -> Silence | None:
        """Return why to stay silent at a frame; None: speak.

        Args:
            p_speak: read at the frame.
            frame: its index.
            addressed: whether the user has just said something: then cooldown and hysteresis do not apply.
            updated: whether the state has just moved, which is something new to say: hysteresis does not apply.
        """
        threshold, hysteresis = self.policy.speak, self.policy.speak_hysteresis
        self.speak_armed |= addressed or updated or _came_down(p_speak, threshold, hysteresis)
        if p_speak <= threshold:
            return "threshold"
        if not addressed and self.last_spoken is not None and frame - self.last_spoken <= self.policy.cooldown_frames:
            return "cooldown"
        return None if self.speak_armed else "hysteresis"

    def record(self, frame: int, updated: bool, spoke: bool) -> None:
        """Note what was done at a frame."""
        if spoke:
            self.last_spoken, self.speak_armed = frame, False
        self.update_armed &= not updated


def _came_down(probability: float, threshold: float, hysteresis: float | None) -> bool:
    return hysteresis is None or probability <= threshold * (1 - hysteresis)
