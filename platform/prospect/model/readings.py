"""Decision probabilities and states at the labelled frames of a batch, with their labels, for validation scores."""

from dataclasses import dataclass

import torch
from torch import Tensor

from prospect.data.batches import IGNORE, Batch
from prospect.model.heads import NUM_STEP_STATES
from prospect.model.interface import DSTModel
from prospect.model.losses import first_open, read_trunk, spoken_labels, state_logits, term_sums
from prospect.model.settings import LossSettings


@dataclass(frozen=True)
class Readings:
    """Decisions of the labelled frames as the engine reads them, with a reference's events in the context.

    Attributes:
        speak, update: [2, N] float32: probabilities, then labels; N differs between the two.
        states: [3, 3] float64: confusion counts of step states, label by prediction.
    """

    speak: Tensor
    update: Tensor
    states: Tensor

    @classmethod
    def empty(cls) -> "Readings":
        return cls(torch.empty(2, 0), torch.empty(2, 0), torch.zeros(NUM_STEP_STATES, NUM_STEP_STATES).double())

    def __add__(self, other: "Readings") -> "Readings":
        speak, update = torch.cat([self.speak, other.speak], 1), torch.cat([self.update, other.update], 1)
        return Readings(speak, update, self.states + other.states)


def loss_sums_and_readings(model: DSTModel, batch: Batch, settings: LossSettings) -> tuple[Tensor, Readings]:
    """`losses.loss_sums`, and the decisions of the same forward pass on the CPU."""
    flat, lookup = read_trunk(model, batch)
    return term_sums(model, flat, batch, settings, lookup), _readings(model, flat, batch)


def _readings(model: DSTModel, flat: Tensor, batch: Batch) -> Readings:
    speak, update = model.decision_probabilities(flat[batch.decisions])
    if model.config.decision_backend == "token":
        speak = torch.cat([speak, model.decision_probabilities(flat[batch.after_delta])[0]])
    spoken = spoken_labels(batch, model.config.decision_backend)
    cells = NUM_STEP_STATES * batch.state_labels + state_logits(model, flat, batch).argmax(-1)
    if model.config.state_head == "frame":
        cells = cells[first_open(batch)]
    counts = torch.bincount(cells, minlength=NUM_STEP_STATES**2).view(NUM_STEP_STATES, NUM_STEP_STATES)
    return Readings(_labelled(speak, spoken), _labelled(update, batch.update), counts.double().cpu())


def _labelled(probabilities: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([probabilities.float(), labels.float()])[:, labels != IGNORE].cpu()
