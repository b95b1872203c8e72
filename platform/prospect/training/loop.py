"""The training step, its batches and its learning rate, on any backend.

The order of clips, the labels that count and the means of the losses belong to the
global batch, so that neither world size nor micro-batch size changes the loss curve (docs/architecture.md#losses).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from prospect.data.batches import Batch
from prospect.data.clips import Clip
from prospect.errors import ConfigError, DataError
from prospect.hashing import derived_seed
from prospect.model.losses import TERMS, label_counts, total_loss, trained_heads
from prospect.training.backend import TrainingBackend, raise_on_all_ranks
from prospect.training.sampler import ClipSampler, Share
from prospect.training.settings import TrainingError, TrainingSettings

Collate = Callable[[Sequence[Clip], int], Batch]
"""(clips, epoch) -> batch; a `Collator`."""


def lr_at(step: int, settings: TrainingSettings, total_steps: int) -> float:
    """Learning rate of a step (from 0): linear warm-up, then the schedule, which reaches 0 after the last step."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    progress = min(1.0, (step - settings.warmup_steps) / max(1, total_steps - settings.warmup_steps))
    factor = 1 - progress if settings.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return settings.learning_rate * factor


@dataclass(frozen=True)
class StepResult:
    """One optimizer step, as numbers of the global batch.

    Attributes:
        loss: before the update.
        parts: unweighted losses by name; losses without labels are left out.
        labels: labels of each loss term that has any; a decision has a term for each class.
        trained: which heads had labels.
        grad_norm: before clipping.
        clips, tokens: how many, padding not counted.
    """

    step: int
    epoch: int
    loss: float
    parts: dict[str, float]
    labels: dict[str, int]
    trained: dict[str, bool]
    grad_norm: float
    learning_rate: float
    clips: int
    tokens: int


@dataclass(frozen=True)
class MicroBatch:
    """Clips that one forward pass computes, and whether they count in the loss."""

    batch: Batch
    counts: bool = True


@dataclass(frozen=True)
class StepBatch:
    """One rank's share of an optimizer step's global batch."""

    micro_batches: Sequence[MicroBatch]
    learning_rate: float
    step: int = 0
    epoch: int = 0


def train_step(backend: TrainingBackend, batch: StepBatch, settings: TrainingSettings) -> StepResult:
    """One optimizer step on this rank's share of the global batch.

    Labels are counted over the global batch before the first forward pass, so that every micro-batch's loss is its
    share of the global loss and gradients only need to be summed.

    Raises:
        TrainingError: the loss or the gradient is not finite, naming the clips; on every rank alike.
    """
    micro_batches, step, config = batch.micro_batches, batch.step, backend.model.config
    heads = config.decision_backend, config.state_head
    none = torch.zeros(len(TERMS) + 2, dtype=torch.float64)
    totals = backend.all_reduce(sum((_totals(micro, *heads) for micro in micro_batches), none))
    counts, clips, tokens = totals[:-2], int(totals[-2]), int(totals[-1])
    backend.model.train()
    backend.model.checkpoint_layers(settings.activation_checkpointing)
    sums = []
    for micro in micro_batches:
        # Dropout is seeded by the clips, not by the rank: any number of workers draws the same.
        torch.manual_seed(derived_seed("dropout", settings.seed, step, *micro.batch.clip_ids))
        terms = backend.loss_sums(micro.batch.to(backend.device), settings.losses)
        loss, _ = total_loss(terms, counts, settings.losses)
        backend.backward(loss * micro.counts)
        sums.append(terms.detach().double().cpu() * micro.counts)
    loss, parts = total_loss(backend.all_reduce(torch.stack(sums).sum(0)), counts, settings.losses)
    if not loss.isfinite():
        broken = [m.batch.clip_ids for m, terms in zip(micro_batches, sums, strict=True) if not terms.isfinite().all()]
        _raise_not_finite(f"the loss is {loss:g}", step, backend.gather([clip for ids in broken for clip in ids]))
    grad_norm = backend.step(batch.learning_rate)
    if not math.isfinite(grad_norm):
        ids = backend.gather([clip for micro in micro_batches for clip in micro.batch.clip_ids])
        _raise_not_finite("the gradient is not finite", step, ids)
    return StepResult(
        step=step,
        epoch=batch.epoch,
        loss=float(loss),
        parts=labelled_parts(parts, counts, settings),
        labels={name: int(count) for name, count in zip(TERMS, counts.tolist(), strict=True) if count},
        trained=trained_heads(counts, settings.losses),
        grad_norm=grad_norm,
        learning_rate=batch.learning_rate,
        clips=clips,
        tokens=tokens,
    )


def _totals(micro: MicroBatch, decisions: str, states: str) -> Tensor:
    """[11]: labels of the nine terms, clips, tokens."""
    sizes = torch.tensor([len(micro.batch.clip_ids), micro.batch.num_tokens], dtype=torch.float64)
    return torch.cat([label_counts(micro.batch, decisions, states), sizes]) * micro.counts


def labelled_parts(parts: dict[str, Tensor], counts: Tensor, settings: TrainingSettings) -> dict[str, float]:
    """The parts that had labels; a loss of 0 without labels means nothing."""
    _, present = total_loss((counts > 0).double(), counts.clamp(max=1), settings.losses)
    return {name: float(part) for name, part in parts.items() if present[name] > 0}


def _raise_not_finite(what: str, step: int, clips: list[str]) -> NoReturn:
    shown = ", ".join(clips[:8]) + (f" and {len(clips) - 8} more" if len(clips) > 8 else "")
    raise TrainingError(
        f"{what} at step {step} on {shown}; look at these clips, or lower training.learning_rate under another "
        "training.run_name"
    )


def step_batches(
    backend: TrainingBackend,
    clips: Sequence[Clip],
    collate: Collate,
    settings: TrainingSettings,
    *,
    start: int = 0,
    collate_reading: Collate | None = None,
) -> Iterator[StepBatch]:
    """This rank's batches of the steps from `start` to the last one, each made while the step before it computes.

    `collate_reading` makes those of the last steps, `settings.reading.share` of them.

    Every random draw is seeded by `training.seed`, the step and the clips, so that a resumed run repeats the draws of
    an uninterrupted one.

    Raises:
        TrainingError: an embedding cannot be read; on every rank alike.
    """
    sampler = make_sampler(clips, settings)
    total = settings.total_steps(sampler)

    def collated(step: int) -> list[MicroBatch] | DataError:
        shares = _shares(sampler, settings, step, backend)
        make = collate if collate_reading is None or settings.at(step, total) is settings else collate_reading
        try:
            return [_micro_batch(share, clips, make, sampler.epoch(step)) for share in shares]
        except DataError as error:
            return error

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(collated, start) if start < total else None
        for step in range(start, total):
            assert following is not None
            micro_batches = raise_on_all_ranks(backend, following.result())
            following = pool.submit(collated, step + 1) if step + 1 < total else None
            yield StepBatch(micro_batches, lr_at(step, settings, total), step, sampler.epoch(step))


def make_sampler(clips: Sequence[Clip], settings: TrainingSettings) -> ClipSampler:
    """A sampler that says which of `clips` each step trains on.

    Raises:
        TrainingError: `clips` is empty.
        ConfigError: a clip is longer than `micro_batch_tokens`.
    """
    if not clips:
        raise TrainingError("the split `train` has no clips; check what was quarantined, and the splits")
    lengths = clip_lengths(clips)
    budget, longest = settings.micro_batch_tokens, max(range(len(clips)), key=lengths.__getitem__)
    if budget and lengths[longest] > budget:
        raise ConfigError(
            f"`training.micro_batch_tokens` is {budget}, but clip {clips[longest].id} has {lengths[longest]} tokens: "
            "raise it, or cut shorter clips with context.max_seq_len.",
            field="training.micro_batch_tokens",
        )
    return ClipSampler(lengths, settings.batch_size, settings.seed)


def clip_lengths(clips: Sequence[Clip]) -> list[int]:
    """Tokens of each clip."""
    return [clip.num_tokens or clip.stop - clip.first_row for clip in clips]


def _shares(sampler: ClipSampler, settings: TrainingSettings, step: int, backend: TrainingBackend) -> list[Share]:
    place = (backend.rank, backend.world_size)
    if settings.micro_batch_tokens:
        return sampler.packed_shares(step, settings.micro_batch_tokens, *place)
    return sampler.shares(step, settings.micro_batch_size, *place)


def _micro_batch(share: Share, clips: Sequence[Clip], collate: Collate, epoch: int) -> MicroBatch:
    return MicroBatch(collate([clips[index] for index in share.clips], epoch), share.counts)
