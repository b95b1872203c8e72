"""Training without a cluster: settings, one step, a run of steps, the validation loss.

Everything here sees a `Backend`: `PlainBackend` on one device (notebooks, bare GPU machines, tests), DeepSpeed's
in zero.py. The order of clips, the labels that count and the means of the losses belong to the global batch, so
that neither world size nor micro-batch size changes the loss curve (DESIGN 4.6).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from prospect.data.batches import Batch, SamplingSettings
from prospect.data.clips import Clip, ClipSettings
from prospect.errors import ConfigError, ProspectError
from prospect.lineage import derived_seed
from prospect.model.adapters import keep_trained_in_float32, unwrap
from prospect.model.losses import TERMS, LossSettings, label_counts, loss_sums, total_loss, trained_heads
from prospect.model.modeling import DSTProActLlamaForCausalLM
from prospect.settings import Settings
from prospect.training.sampler import ClipSampler, Share

Collate = Callable[[Sequence[Clip], int], Batch]
"""(clips, epoch) -> batch; a `Collator`."""


class TrainingError(ProspectError):
    """Training cannot go on: the loss is not finite, or the workers failed more often than allowed."""

    code = "training_failed"


class TrainingSettings(Settings):
    """How a model is fitted. `run_name` is the run's identity: the same name again continues it."""

    run_name: str = Field(default="default", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Names the run's folder under storage.root and its MLflow run."""
    num_workers: int = Field(default=1, ge=1)
    """Processes, one a GPU where there are GPUs."""
    zero_stage: Literal[1, 2] = 2
    """DeepSpeed ZeRO: 1 partitions the optimizer's state over the workers, 2 the gradients too."""
    max_failures: int = Field(default=2, ge=0)
    """How many times dead workers are restarted from the last checkpoint."""
    epochs: int = Field(default=10, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; instead of `epochs`."""
    batch_size: int = Field(default=16, ge=1)
    """Clips of one optimizer step, over all workers."""
    micro_batch_size: int = Field(default=4, ge=1)
    """Clips that one worker computes at once, packed into one row; the rest is accumulated."""
    micro_batch_tokens: int | None = Field(default=None, ge=64)
    """Instead of `micro_batch_size`: tokens that one worker computes at once, as many clips as fit. The batch stays
    in clips, so that this changes memory and speed and not the loss."""
    activation_checkpointing: bool = False
    """Keep one hidden state a layer and compute the layer again in the backward pass: a third more work, and
    memory for one layer's activations instead of all."""
    learning_rate: float = Field(default=3e-4, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = Field(default=20, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    """Of weight matrices; biases and norms have none."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    seed: int = 0
    """Of the new parts' initial weights, the order of clips and dropout."""
    log_every: int = Field(default=10, ge=1)
    """Steps between two progress lines."""
    save_every: int = Field(default=200, ge=1)
    """Steps between two checkpoints; the last step is always saved."""
    keep_checkpoints: int = Field(default=2, ge=1)
    eval_every: int | None = Field(default=None, ge=1)
    """Steps between two validation losses; default: once an epoch."""
    losses: LossSettings = LossSettings()
    sampling: SamplingSettings = SamplingSettings()
    clips: ClipSettings = ClipSettings()

    def total_steps(self, sampler: ClipSampler) -> int:
        return self.max_steps or self.epochs * sampler.steps_per_epoch


class Backend(Protocol):
    """What a step needs of the machinery. Gradients of all `backward` calls, on all ranks, are added up."""

    model: DSTProActLlamaForCausalLM
    """The DST model inside whatever wraps it."""
    device: torch.device
    rank: int
    world_size: int

    def backward(self, loss: Tensor) -> None: ...

    def step(self, learning_rate: float) -> float:
        """Clips, updates and clears the gradients; returns their global norm before clipping."""
        ...

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over all ranks."""
        ...

    def gather(self, names: list[str]) -> list[str]:
        """The names of all ranks."""
        ...


class PlainBackend:
    """One process, one device, torch's AdamW."""

    rank = 0
    world_size = 1

    def __init__(self, model: nn.Module, settings: TrainingSettings, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        keep_trained_in_float32(model)
        self.model = unwrap(model.to(self.device))  # type: ignore[arg-type]
        self._max_grad_norm = settings.max_grad_norm
        self._optimizer = make_optimizer(model, settings)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, learning_rate: float) -> float:
        parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self._max_grad_norm)
        set_learning_rate(self._optimizer, learning_rate)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(norm)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        return tensor

    def gather(self, names: list[str]) -> list[str]:
        return names


def make_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW over what is trainable; only matrices decay."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=settings.learning_rate)


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def lr_at(step: int, settings: TrainingSettings, total_steps: int) -> float:
    """The learning rate of step `step` (from 0): linear warm-up, then the schedule down to 0 after the last step."""
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
        parts: unweighted losses by name, of those that had labels.
        labels: how many of each of the losses' terms; a decision has one term for each class.
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
    """A batch, and whether its clips count."""

    batch: Batch
    counts: bool = True


def train_step(
    backend: Backend,
    micro_batches: Sequence[MicroBatch],
    settings: TrainingSettings,
    learning_rate: float,
    *,
    step: int = 0,
    epoch: int = 0,
) -> StepResult:
    """One optimizer step on this rank's micro-batches of the global batch.

    Labels are counted over the global batch before the first forward pass, so that every micro-batch's loss is its
    share of the global loss, and adding up gradients is all that is left to do.

    Raises:
        TrainingError: the loss or the gradient is not finite, naming the clips; on every rank alike.
    """
    decisions = backend.model.config.decision_backend
    totals = backend.all_reduce(sum((_totals(micro, decisions) for micro in micro_batches), torch.zeros(9).double()))
    counts, clips, tokens = totals[:-2], int(totals[-2]), int(totals[-1])
    backend.model.train()
    checkpoint_layers(backend.model, settings.activation_checkpointing)
    sums = []
    for micro in micro_batches:
        with mixed_precision(backend.model):
            terms = loss_sums(backend.model, micro.batch.to(backend.device), settings.losses)
        loss, _ = total_loss(terms, counts.to(backend.device), settings.losses)
        backend.backward(loss * micro.counts)
        sums.append(terms.detach().double().cpu() * micro.counts)
    loss, parts = total_loss(backend.all_reduce(torch.stack(sums).sum(0)), counts, settings.losses)
    if not loss.isfinite():
        broken = [m.batch.clip_ids for m, terms in zip(micro_batches, sums, strict=True) if not terms.isfinite().all()]
        _stop(f"the loss is {loss:g}", step, backend.gather([clip for ids in broken for clip in ids]))
    grad_norm = backend.step(learning_rate)
    if not math.isfinite(grad_norm):
        _stop("the gradient is not finite", step, backend.gather([c for m in micro_batches for c in m.batch.clip_ids]))
    return StepResult(
        step=step,
        epoch=epoch,
        loss=float(loss),
        parts=_labelled(parts, counts, settings),
        labels={name: int(count) for name, count in zip(TERMS, counts.tolist(), strict=True)},
        trained=trained_heads(counts, settings.losses),
        grad_norm=grad_norm,
        learning_rate=learning_rate,
        clips=clips,
        tokens=tokens,
    )


def checkpoint_layers(model: DSTProActLlamaForCausalLM, on: bool) -> None:
    if model.is_gradient_checkpointing != on:
        if on:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()


def mixed_precision(model: DSTProActLlamaForCausalLM) -> torch.autocast:
    """bfloat16 arithmetic around a bfloat16 base, whatever precision the trained parameters are kept in."""
    return torch.autocast(model.device.type, torch.bfloat16, enabled=model.dtype == torch.bfloat16)


def _totals(micro: MicroBatch, decisions: str) -> Tensor:
    """[9]: labels of the seven terms, clips, tokens."""
    sizes = torch.tensor([len(micro.batch.clip_ids), micro.batch.num_tokens], dtype=torch.float64)
    return torch.cat([label_counts(micro.batch, decisions), sizes]) * micro.counts


def _labelled(parts: dict[str, Tensor], counts: Tensor, settings: TrainingSettings) -> dict[str, float]:
    """The parts that had a label: a loss of 0 for want of labels is no loss."""
    _, present = total_loss((counts > 0).double(), counts.clamp(max=1), settings.losses)
    return {name: float(part) for name, part in parts.items() if present[name] > 0}


def _stop(what: str, step: int, clips: list[str]) -> None:
    shown = ", ".join(clips[:8]) + (f" and {len(clips) - 8} more" if len(clips) > 8 else "")
    raise TrainingError(f"{what} at step {step} on {shown}; lower training.learning_rate or look at these clips")


def train_steps(
    backend: Backend,
    clips: Sequence[Clip],
    collate: Collate,
    settings: TrainingSettings,
    *,
    start: int = 0,
) -> Iterator[StepResult]:
    """Runs the steps from `start` to the end; the caller logs, saves and validates between them.

    The next step's batches are made while this one computes. Dropout's random state belongs to the step, so that a
    resumed run draws what an unbroken one draws.
    """
    sampler = make_sampler(clips, settings)
    total = settings.total_steps(sampler)

    def prepare(step: int) -> list[MicroBatch]:
        shares = _shares(sampler, settings, step, backend)
        return [_micro_batch(share, clips, collate, sampler.epoch(step)) for share in shares]

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(prepare, start) if start < total else None
        for step in range(start, total):
            assert following is not None
            micro_batches = following.result()
            following = pool.submit(prepare, step + 1) if step + 1 < total else None
            torch.manual_seed(derived_seed("step", settings.seed, step, backend.rank))
            rate = lr_at(step, settings, total)
            yield train_step(backend, micro_batches, settings, rate, step=step, epoch=sampler.epoch(step))


def make_sampler(clips: Sequence[Clip], settings: TrainingSettings) -> ClipSampler:
    """The order of `clips`.

    Raises:
        TrainingError: there is none.
        ConfigError: one is longer than `micro_batch_tokens`.
    """
    if not clips:
        raise TrainingError("there is no clip to train on; look at what was quarantined, and at the splits")
    lengths = [clip.num_tokens or clip.stop - clip.first_row for clip in clips]
    budget, longest = settings.micro_batch_tokens, max(range(len(clips)), key=lengths.__getitem__)
    if budget and lengths[longest] > budget:
        raise ConfigError(
            f"`training.micro_batch_tokens` is {budget}, but clip {clips[longest].id} has {lengths[longest]} tokens: "
            "raise it, or cut shorter clips with context.max_seq_len.",
            field="training.micro_batch_tokens",
        )
    return ClipSampler(lengths, settings.batch_size, settings.seed)


def _shares(sampler: ClipSampler, settings: TrainingSettings, step: int, backend: Backend) -> list[Share]:
    place = (backend.rank, backend.world_size)
    if settings.micro_batch_tokens:
        return sampler.packed_shares(step, settings.micro_batch_tokens, *place)
    return sampler.shares(step, settings.micro_batch_size, *place)


def _micro_batch(share: Share, clips: Sequence[Clip], collate: Collate, epoch: int) -> MicroBatch:
    return MicroBatch(collate([clips[index] for index in share.clips], epoch), share.counts)


@torch.no_grad()
def validation_loss(
    backend: Backend, clips: Sequence[Clip], collate: Collate, settings: TrainingSettings
) -> dict[str, float]:
    """`loss` and its parts over `clips`, each rank computing its share; `collate` should label every frame."""
    backend.model.eval()
    decisions = backend.model.config.decision_backend
    totals = torch.zeros(2, 7, dtype=torch.float64)
    mine = sorted(clips, key=len)[backend.rank :: backend.world_size]
    for first in range(0, len(mine), settings.micro_batch_size):
        batch = collate(mine[first : first + settings.micro_batch_size], 0)
        with mixed_precision(backend.model):
            terms = loss_sums(backend.model, batch.to(backend.device), settings.losses)
        totals[0] += terms.double().cpu()
        totals[1] += label_counts(batch, decisions)
    sums, counts = backend.all_reduce(totals)
    loss, parts = total_loss(sums, counts, settings.losses)
    return {"loss": float(loss), **_labelled(parts, counts, settings)}
