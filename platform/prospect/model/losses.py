"""Training losses as sums and counts, from which means over the global batch are taken (docs/architecture.md#losses).

A rank computes the sums of its micro-batch; the counts come from the labels and are summed over ranks and micro-batches
before the backward pass. World size therefore changes neither loss nor gradient.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint
from torchvision.ops import sigmoid_focal_loss

from prospect.data.batches import IGNORE, Batch
from prospect.dialogue.sequence import TextTask
from prospect.dialogue.state import StepState
from prospect.model.interface import DSTModel
from prospect.model.packing import ATTENTION, AttentionGuide, Packing
from prospect.model.settings import LOSS_PARTS, LossSettings

TERMS = (
    "speaking_text", "dst_text", "summary_text", "speak_positive", "speak_negative", "update_positive",
    "update_negative", "state", "lookup",
)  # fmt: skip
"""Loss terms, in the order of all [9] tensors here: text by task, decisions by class, the state head, lookups."""


MAX_LOGITS = 2**25
"""Most vocabulary logits that are held at once: 128 MiB in float32, 261 tokens of Llama 3."""


def label_counts(batch: Batch, backend: str, state_head: str = "steps") -> Tensor:
    """Number of labels of each term in this micro-batch, [9] float64; of what a model's config says of its heads."""
    speak = spoken_labels(batch, backend)
    return torch.tensor(
        [
            int((batch.text_tasks == TextTask.SPEAKING).sum()),
            int((batch.text_tasks == TextTask.DST).sum()),
            int((batch.text_tasks == TextTask.SUMMARY).sum()),
            int((speak == 1).sum()),
            int((speak == 0).sum()),
            int((batch.update == 1).sum()),
            int((batch.update == 0).sum()),
            len(batch.state_labels) if state_head == "steps" else int(first_open(batch).sum()),
            len(batch.lookups),
        ],
        dtype=torch.float64,
    )


def loss_sums(model: DSTModel, batch: Batch, settings: LossSettings) -> Tensor:
    """Sum of each loss term over this micro-batch, [9], differentiable."""
    flat, lookup = read_trunk(model, batch)
    return term_sums(model, flat, batch, settings, lookup)


def read_trunk(model: DSTModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Hidden states [B * S, H], and the sum of the lookup losses of the batch.

    A lookup's loss is the guide's, and the cross-entropy of the word where `lm_head` reads what was found alone.
    """
    inputs = trunk_inputs(batch)
    flat = model.trunk(**inputs).flatten(0, 1)
    guide = inputs["packing"].guide if batch.packed else None
    if guide is None:
        return flat, flat.new_zeros(())
    logits = model.lm_head(model.text.norm(guide.found)).float()
    return flat, guide.loss + F.cross_entropy(logits, batch.lookup_words, reduction="sum")


def term_sums(model: DSTModel, flat: Tensor, batch: Batch, settings: LossSettings, lookup: Tensor) -> Tensor:
    """Sum of each loss term, [9], from hidden states [B * S, H] and the sum of the lookup losses."""
    return torch.stack([*text_sums(model, flat, batch), *decision_sums(model, flat, batch, settings), lookup])


def decision_sums(model: DSTModel, flat: Tensor, batch: Batch, settings: LossSettings) -> list[Tensor]:
    """Sums of the terms after the text's, from hidden states [B * S, H]: decisions by class, then the state head."""
    decide = _head_decisions if model.config.decision_backend == "heads" else _token_decisions
    return [*decide(model, flat, batch, settings), _state(model, flat, batch)]


def trunk_inputs(batch: Batch) -> dict[str, Any]:
    """Arguments with which `DSTModel.trunk` reads a batch, packed into one row or padded."""
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "frames": batch.frames}
    if not batch.packed:
        return {**inputs, "attention_mask": batch.attention_mask}
    packing = Packing.of(batch.lengths, batch.input_ids.device)
    if batch.guides:
        packing = replace(packing, guide=AttentionGuide(batch.lookups, batch.looked_up))
    return {**inputs, "attention": ATTENTION, "packing": packing, "position_ids": packing.position_ids}


def total_loss(sums: Tensor, counts: Tensor, settings: LossSettings) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted loss, and its parts by name, from sums and the global batch's counts, both [9].

    A decision's loss averages the means of its two classes, or is the mean of the only class with labels. With
    `focal_alpha` it is the weighted mean over both (Lin et al. 2017, equation 5).
    """
    named = dict(zip(TERMS, sums, strict=True))
    numbers = dict(zip(TERMS, counts.to(sums), strict=True))
    means = dict(zip(TERMS, sums / counts.to(sums).clamp_min(1), strict=True))
    present = dict(zip(TERMS, counts > 0, strict=True))

    def decided(name: str) -> Tensor:
        classes = [f"{name}_positive", f"{name}_negative"]
        if settings.decision == "focal" and settings.focal_alpha is not None:
            positive, negative = (named[each] for each in classes)
            weighted = settings.focal_alpha * positive + (1 - settings.focal_alpha) * negative
            return weighted / sum(numbers[each] for each in classes).clamp_min(1)
        return (means[classes[0]] + means[classes[1]]) / max(1, sum(bool(present[c]) for c in classes))

    parts = {name: means[name] if name in means else decided(name) for name in LOSS_PARTS}
    total = sum((getattr(settings, name) * part for name, part in parts.items()), sums.new_zeros(()))
    return total, parts


def trained_heads(counts: Tensor, settings: LossSettings) -> dict[str, bool]:
    """Which heads a batch with `counts` [9] trains: a decision needs positives and text with weights above zero."""
    n = dict(zip(TERMS, counts.tolist(), strict=True))
    return {
        "speaking": min(n["speak_positive"], n["speaking_text"], settings.speak, settings.speaking_text) > 0,
        "dst_update": min(n["update_positive"], n["dst_text"], settings.update, settings.dst_text) > 0,
        "dst_state": min(n["state"], settings.state) > 0,
    }


def text_sums(model: DSTModel, flat: Tensor, batch: Batch) -> list[Tensor]:
    """Sums of the three text terms, from hidden states [B * S, H].

    `lm_head` runs at labelled positions only, in chunks that the backward pass recomputes.
    """

    def chunk_losses(hidden: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model.lm_head(hidden).float(), targets, reduction="none")

    rows = max(1, MAX_LOGITS // model.text_config.vocab_size if model.logits_in_chunks else len(batch.text_positions))
    chunks = list(zip(flat[batch.text_positions].split(rows), batch.text_targets.split(rows), strict=True))
    if len(chunks) == 1 or not torch.is_grad_enabled():
        losses = torch.cat([chunk_losses(*chunk) for chunk in chunks])
    else:
        losses = torch.cat([checkpoint(chunk_losses, *chunk, use_reentrant=False) for chunk in chunks])
    return [(losses * (batch.text_tasks == task)).sum() for task in TextTask if task]


def _head_decisions(model: DSTModel, flat: Tensor, batch: Batch, settings: LossSettings) -> list[Tensor]:
    speak, update = model.decision_logits(flat[batch.decisions])
    return [*_binary(speak, batch.speak, settings), *_binary(update, batch.update, settings)]


def _binary(logits: Tensor, labels: Tensor, settings: LossSettings) -> list[Tensor]:
    targets = labels.clamp_min(0).float()
    if settings.decision == "focal":
        losses = sigmoid_focal_loss(logits, targets, alpha=-1, gamma=settings.focal_gamma)
    else:
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return _by_class(losses, labels)


def _modulate(losses: Tensor, settings: LossSettings) -> Tensor:
    """Focal loss over three classes: (1 - p_t)^gamma * CE, with p_t = exp(-CE) (Lin et al. 2017, without alpha)."""
    if settings.decision == "balanced":
        return losses
    return (1 - torch.exp(-losses)) ** settings.focal_gamma * losses


def _by_class(losses: Tensor, labels: Tensor) -> list[Tensor]:
    """Sums over the labels 1 and 0, without shapes that depend on labels, which would synchronise a GPU."""
    return [(losses * (labels == label)).sum() for label in (1, 0)]


def spoken_labels(batch: Batch, backend: str) -> Tensor:
    """Speak labels at the positions where the back-end reads them; `token`: after a delta, else at the image."""
    if backend == "heads":
        return batch.speak
    at_image = torch.where(batch.update == 1, torch.full_like(batch.speak, IGNORE), batch.speak)
    return torch.cat([at_image, batch.after_delta_speak])


def _token_decisions(model: DSTModel, flat: Tensor, batch: Batch, settings: LossSettings) -> list[Tensor]:
    """Cross-entropy over [SILENT], [DST], [ASST]: an update comes first at the image, speech then after its delta."""
    updates = batch.update == 1
    target = torch.where(updates, torch.ones_like(batch.speak), torch.where(batch.speak == 1, 2, 0))
    target = torch.where((batch.speak == IGNORE) & ~updates, IGNORE, target)
    image = F.cross_entropy(model.decision_rows(flat[batch.decisions]), target, reduction="none", ignore_index=IGNORE)
    after_target = torch.where(batch.after_delta_speak == 1, 2, 0)
    after = F.cross_entropy(model.decision_rows(flat[batch.after_delta]), after_target, reduction="none")
    image, after = _modulate(image, settings), _modulate(after, settings)
    spoken = spoken_labels(batch, "token")
    speak = _by_class(torch.cat([image, after]), spoken)
    return [*speak, *_by_class(image, batch.update)]


def state_logits(model: DSTModel, flat: Tensor, batch: Batch) -> Tensor:
    """State head logits [E, 3] for every frame and step with a label."""
    head = model.dst_state_head
    steps, frames = head.step_vectors(flat[batch.step_positions]), head.frame_vectors(flat[batch.decisions])
    return head.compare(frames[batch.state_frames], steps[batch.state_steps])


def first_open(batch: Batch) -> Tensor:
    """Whether a pair of frame and step is of the frame's first step that is not completed, [E].

    Of a frame whose steps are all completed it is the first one.
    """
    behind = len(batch.step_positions)
    order = torch.where(batch.state_labels == StepState.COMPLETED, batch.state_steps + behind, batch.state_steps)
    first = torch.full_like(batch.decisions, 2 * behind).scatter_reduce(0, batch.state_frames, order, "amin")
    return order == first[batch.state_frames]


def _state(model: DSTModel, flat: Tensor, batch: Batch) -> Tensor:
    logits, labels = state_logits(model, flat, batch), batch.state_labels
    if model.config.state_head == "frame":
        labels = torch.where(first_open(batch), labels, IGNORE)
    return F.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORE)
