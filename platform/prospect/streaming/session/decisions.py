"""From a frame's hidden state to probabilities, and from probabilities to a decision."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from prospect.dialogue.state import StepState, TaskState
from prospect.model.interface import DSTModel
from prospect.streaming.settings import DstDecoder, GenerationSettings, StreamingSettings
from prospect.streaming.types import SessionSpec, Silence


@dataclass(frozen=True)
class Probabilities:
    speak: float
    update: float


def speak_after_delta(model: DSTModel, before: Probabilities, hidden: Tensor) -> float:
    """Of speaking behind a delta whose stop token has the hidden state [H], where the image said `before`.

    What the heads said stands; the token back-end reads again.
    """
    if model.config.decision_backend == "heads":
        return before.speak
    speak, _ = model.decision_probabilities(hidden)
    return float(speak)


def read_state(logits: Tensor, shown: list[int], current: TaskState) -> TaskState:
    """The most probable state that `current` can legally become.

    Args:
        logits: [len(shown), 3] of the state head.
        shown: recipe indices of the steps that stand in the context.
        current: the tracked state; steps not shown keep theirs.
    """
    steps = list(current.steps)
    for step, scores in zip(shown, logits.tolist(), strict=True):
        reachable = range(steps[step], len(StepState))
        steps[step] = StepState(max(reachable, key=scores.__getitem__))
    return TaskState(tuple(steps))


@dataclass(frozen=True)
class DecisionPolicy:
    """A session acts where a probability is above its threshold and nothing holds it back."""

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
    """With the session's own thresholds, else those of `StreamingSettings.thresholds`."""
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
    """What keeps a session from doing the same thing at frame after frame, whatever its model says."""

    policy: DecisionPolicy
    last_spoken: int | None = None
    """Frame of the last utterance."""
    speak_armed: bool = True
    """Whether the probability has come down since the last utterance."""
    update_armed: bool = True
    """Whether it has since the last update."""

    def updates(self, p_update: float) -> bool:
        """Whether to update the state at a frame."""
        threshold, hysteresis = self.policy.update, self.policy.update_hysteresis
        self.update_armed |= _came_down(p_update, threshold, hysteresis)
        return p_update > threshold and self.update_armed

    def silence(self, p_speak: float, frame: int, addressed: bool, updated: bool) -> Silence | None:
        """Why to stay silent at a frame; None: speak. A user who has just said something is always answered.

        A state that has just moved is something new to speak about: the probability need not have come down.
        """
        threshold, hysteresis = self.policy.speak, self.policy.speak_hysteresis
        self.speak_armed |= addressed or updated or _came_down(p_speak, threshold, hysteresis)
        if p_speak <= threshold:
            return "threshold"
        if not addressed and self.last_spoken is not None and frame - self.last_spoken <= self.policy.cooldown_frames:
            return "cooldown"
        return None if self.speak_armed else "hysteresis"

    def acted(self, frame: int, updated: bool, spoke: bool) -> None:
        """Something was done at a frame; it must not simply go on."""
        if spoke:
            self.last_spoken, self.speak_armed = frame, False
        self.update_armed &= not updated


def _came_down(probability: float, threshold: float, hysteresis: float | None) -> bool:
    return hysteresis is None or probability <= threshold * (1 - hysteresis)
