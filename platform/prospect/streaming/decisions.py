"""From a frame's hidden state to probabilities, and from probabilities to a decision."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from prospect.dialogue.state import StepState, TaskState
from prospect.model.modeling import DSTProActLlamaForCausalLM


@dataclass(frozen=True)
class Probabilities:
    speak: float
    update: float


class DecisionBackend(Protocol):
    """How a model decides at a frame's last image token, and whether it speaks after a delta."""

    def at_image(self, hidden: Tensor) -> Probabilities: ...

    def after_delta(self, before: Probabilities, hidden: Tensor) -> float: ...


@dataclass(frozen=True)
class HeadDecisions:
    """Two heads on the hidden state [H]; the delta does not change what they said."""

    model: DSTProActLlamaForCausalLM

    def at_image(self, hidden: Tensor) -> Probabilities:
        return _read(self.model, hidden)

    def after_delta(self, before: Probabilities, hidden: Tensor) -> float:
        return before.speak


@dataclass(frozen=True)
class TokenDecisions:
    """A softmax over three rows of `lm_head`; after a delta the speak probability is read again."""

    model: DSTProActLlamaForCausalLM

    def at_image(self, hidden: Tensor) -> Probabilities:
        return _read(self.model, hidden)

    def after_delta(self, before: Probabilities, hidden: Tensor) -> float:
        return _read(self.model, hidden).speak


def _read(model: DSTProActLlamaForCausalLM, hidden: Tensor) -> Probabilities:
    speak, update = torch.stack(model.decision_probabilities(hidden)).tolist()
    return Probabilities(speak, update)


def decision_backend(model: DSTProActLlamaForCausalLM) -> DecisionBackend:
    return HeadDecisions(model) if model.config.decision_backend == "heads" else TokenDecisions(model)


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
