"""How much memory a training run takes, from shapes alone: nothing is loaded and nothing computed.

Weights, gradients and the optimizer's state follow from the number of parameters. What a forward and a backward pass
hold between them is found by running both on fake tensors, which have shapes and no numbers, for models of one and of
two layers; the others cost as much as the second.
"""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from rich import box
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from prospect.data.batches import Batch
from prospect.dialogue.sequence import TextTask
from prospect.errors import ConfigError
from prospect.model.adapters import PROJECTIONS, adapt, unwrap
from prospect.model.configuration import ModelSettings
from prospect.model.geometry import base_geometry, empty_model
from prospect.model.losses import decision_sums, text_sums
from prospect.model.modeling import DSTProActLlamaForCausalLM
from prospect.model.packing import ATTENTION, Packing
from prospect.training.settings import TrainingSettings

if TYPE_CHECKING:
    from prospect.config import Config

GIB = 2**30
CARDS = ("24GB", "40GB", "80GB")
NF4_BYTES = 4.127 / 8
"""Of a weight with its share of quantised scales."""
TEXT_SHARE = 0.4
"""Of a row's tokens that carry text labels; the sample corpus, which talks much, has 0.41."""
STEPS = 8
"""Of a recipe, for the state head."""
USABLE = 0.95
"""Share of a card that an allocator can fill, fragments and kernels' workspaces left out."""
CONTEXT_BYTES = int(0.5 * GIB)
"""What CUDA takes for itself."""
BUCKET = 500_000_000
"""Numbers of a gradient bucket of DeepSpeed, which holds no more than there are gradients."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one device, at the step's peak.

    Attributes:
        weights: of the model, as the forward pass reads them.
        master: DeepSpeed's own copy of what trains.
        optimizer: AdamW's two moments.
        gradients: with DeepSpeed's bucket.
        gathered: the weights of two layers that ZeRO-3 brings together at once.
        activations: what forward and backward hold at most, logits included.
        host: on the machine's memory instead, with offload.
        trainable, frozen: numbers of parameters of the whole model.
        tokens: of a micro-batch.
    """

    weights: int
    master: int
    optimizer: int
    gradients: int
    gathered: int
    activations: int
    host: int
    trainable: int
    frozen: int
    tokens: int

    @property
    def peak(self) -> int:
        return self.weights + self.master + self.optimizer + self.gradients + self.gathered + self.activations

    def fits(self, card: str | float) -> bool:
        """Whether the peak fits a card of `card` ("24GB", or GiB as a number), CUDA's own needs considered."""
        return self.peak <= USABLE * (card_bytes(card) - CONTEXT_BYTES)

    def table(self, cards: tuple[str, ...] = CARDS) -> Table:
        title = f"Memory on one device, {self.tokens:,} tokens at once, {self.trainable / 1e6:,.1f} M trainable"
        table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False)
        table.add_column("what")
        table.add_column("GiB", justify="right")
        for name in ("weights", "master", "optimizer", "gradients", "gathered", "activations"):
            table.add_row(name, f"{getattr(self, name) / GIB:.2f}", end_section=name == "activations")
        table.add_row("[bold]peak", f"[bold]{self.peak / GIB:.2f}")
        if self.host:
            table.add_row("in the machine's memory", f"{self.host / GIB:.2f}")
        for card in cards:
            table.add_row(f"fits {card}", "yes" if self.fits(card) else "no")
        return table


def card_bytes(card: str | float) -> int:
    """`24GB`, `24GiB`, `24` -> bytes; cards are named after GiB.

    Raises:
        ConfigError: none of these.
    """
    text = str(card).strip().lower().removesuffix("gib").removesuffix("gb").strip()
    try:
        return int(float(text) * GIB)
    except ValueError as error:
        raise ConfigError(f"The card `{card}` is no size: write such as 24GB or 80GB.") from error


def plan(config: "Config", vision_dim: int = 1152) -> MemoryPlan:
    """The plan of a training job; `vision_dim` is D of its embeddings.

    Raises:
        CheckpointError: the base's geometry is not known.
    """
    training = config.training
    tokens = training.micro_batch_tokens or training.micro_batch_size * config.context.max_seq_len
    longest = min(tokens, config.context.max_seq_len)
    lengths = (longest,) * (tokens // longest) + ((tokens % longest,) if tokens % longest else ())
    return plan_zero(config.model, training, lengths, vision_dim)


def plan_zero(
    model: ModelSettings, training: TrainingSettings, lengths: tuple[int, ...], vision_dim: int = 1152
) -> MemoryPlan:
    """The plan of DeepSpeed training with micro-batches of clips of these lengths."""
    sizes = _sizes(model, vision_dim)
    trained, width = sizes.trainable, torch.finfo(getattr(torch, model.dtype)).bits // 8
    workers, stage = training.num_workers, training.zero_stage
    state_bytes = (4 + 8) * trained // workers
    frozen_bytes = sizes.frozen_bytes + width * trained
    gathered = 2 * sizes.layer_bytes if stage == 3 else 0
    gradients = width * (trained // (workers if stage > 1 else 1) + min(BUCKET, trained) * (workers > 1))
    offload = training.offload_optimizer
    return MemoryPlan(
        weights=frozen_bytes // (workers if stage == 3 else 1),
        master=0 if offload else state_bytes // 3,
        optimizer=0 if offload else state_bytes - state_bytes // 3,
        gradients=gradients,
        gathered=gathered,
        activations=activation_bytes(model, training, lengths, vision_dim),
        host=state_bytes if offload else 0,
        trainable=trained,
        frozen=sizes.frozen,
        tokens=sum(lengths),
    )


def plan_plain(
    model: ModelSettings, training: TrainingSettings, lengths: tuple[int, ...], vision_dim: int = 1152
) -> MemoryPlan:
    """The plan of `PlainBackend`: one device, no DeepSpeed, what trains in float32 beside a frozen base."""
    sizes = _sizes(model, vision_dim)
    width = 4 if sizes.frozen else torch.finfo(getattr(torch, model.dtype)).bits // 8
    return MemoryPlan(
        weights=sizes.frozen_bytes + width * sizes.trainable,
        master=0,
        optimizer=2 * width * sizes.trainable,
        gradients=width * sizes.trainable,
        gathered=0,
        activations=activation_bytes(model, training, lengths, vision_dim),
        host=0,
        trainable=sizes.trainable,
        frozen=sizes.frozen,
        tokens=sum(lengths),
    )


@dataclass(frozen=True)
class _Sizes:
    trainable: int
    frozen: int
    frozen_bytes: int
    layer_bytes: int


def _sizes(settings: ModelSettings, vision_dim: int) -> _Sizes:
    model = _adapted(empty_model(base_geometry(settings), settings, vision_dim), settings)
    trainable = frozen = frozen_bytes = 0
    seen: set[int] = set()
    for name, parameter in model.named_parameters():
        if id(parameter) in seen or "original_module" in name:
            continue
        seen.add(id(parameter))
        if parameter.requires_grad:
            trainable += parameter.numel()
            continue
        in_4_bits = settings.adaptation == "qlora" and any(f".{part}." in name for part in PROJECTIONS)
        frozen += parameter.numel()
        frozen_bytes += int(parameter.numel() * (NF4_BYTES if in_4_bits else parameter.element_size()))
    layer = unwrap(model).model.layers[0]
    layer_bytes = sum(p.numel() * torch.finfo(getattr(torch, settings.dtype)).bits // 8 for p in layer.parameters())
    return _Sizes(trainable, frozen, frozen_bytes, layer_bytes)


def _adapted(model: DSTProActLlamaForCausalLM, settings: ModelSettings) -> DSTProActLlamaForCausalLM | PeftModel:
    """4-bit weights hold their place in full width: only their bytes differ."""
    whole = "full" if settings.adaptation == "full" else "lora"
    return adapt(model, settings.model_copy(update={"adaptation": whole}))


def activation_bytes(
    settings: ModelSettings, training: TrainingSettings, lengths: tuple[int, ...], vision_dim: int = 1152
) -> int:
    """The most that a forward and a backward pass hold besides weights, gradients and the optimizer's state."""
    geometry = base_geometry(settings)
    one, two = (_pass_bytes(settings, training, lengths, vision_dim, layers) for layers in (1, 2))
    return two + (geometry.num_hidden_layers - 2) * (two - one)


def _pass_bytes(
    settings: ModelSettings, training: TrainingSettings, lengths: tuple[int, ...], vision_dim: int, layers: int
) -> int:
    geometry = base_geometry(settings)
    geometry.num_hidden_layers = layers
    model = _adapted(empty_model(geometry, settings, vision_dim), settings)
    inner, dtype = unwrap(model).train(), getattr(torch, settings.dtype)
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        _make_fake(model, settings)
        inner.checkpoint_layers(training.activation_checkpointing)
        inner.set_attn_implementation(ATTENTION)
        packing, batch = Packing.of(lengths, "cpu"), fake_batch(lengths, vision_dim)
        embeddings = torch.empty(1, sum(lengths), geometry.hidden_size, dtype=dtype, requires_grad=True)
        known = [*model.parameters(), *model.buffers(), embeddings, *(p.grad for p in model.parameters())]
        with _LiveBytes(known) as live:
            kwargs = {"packing": packing, "position_ids": packing.position_ids, "use_cache": False}
            flat = inner.model(inputs_embeds=embeddings, **kwargs).last_hidden_state[0]
            terms = [*text_sums(inner, flat, batch), *decision_sums(inner, flat, batch, training.losses)]
            torch.stack(terms).sum().backward()
    return live.peak


def _make_fake(model: nn.Module, settings: ModelSettings) -> None:
    """Weights and gradients on the CPU that have a shape alone; what trains beside a frozen base is float32."""
    replaced: dict[int, nn.Parameter] = {}
    beside_frozen = settings.adaptation != "full"
    for module in model.modules():
        for name, meta in [(n, p) for n, p in module._parameters.items() if p is not None]:
            if id(meta) not in replaced:
                wide = beside_frozen and meta.requires_grad
                fake = torch.empty(meta.shape, dtype=torch.float32 if wide else meta.dtype)
                replaced[id(meta)] = nn.Parameter(fake, requires_grad=meta.requires_grad)
                if meta.requires_grad:
                    replaced[id(meta)].grad = torch.empty_like(fake)
            module._parameters[name] = replaced[id(meta)]
        for name, meta_buffer in [(n, b) for n, b in module._buffers.items() if b is not None]:
            module._buffers[name] = torch.empty(meta_buffer.shape, dtype=meta_buffer.dtype)


def fake_batch(lengths: tuple[int, ...], vision_dim: int) -> Batch:
    """A row of frames and text as it is mostly: `TEXT_SHARE` of it text, every other token a decided frame."""
    tokens = sum(lengths)
    texts, frames = int(tokens * TEXT_SHARE), tokens - int(tokens * TEXT_SHARE)
    sizes = {
        "decisions": frames, "speak": frames, "update": frames, "after_delta": 0, "after_delta_speak": 0,
        "text_positions": texts, "text_targets": texts, "text_tasks": texts, "step_positions": STEPS * len(lengths),
        "state_frames": frames * STEPS, "state_steps": frames * STEPS, "state_labels": frames * STEPS,
    }  # fmt: skip
    labels = {name: torch.zeros(size, dtype=torch.long) for name, size in sizes.items()}
    labels["text_tasks"] += TextTask.SPEAKING
    ids = torch.zeros(1, tokens, dtype=torch.long)
    return Batch([""] * len(lengths), True, lengths, ids, torch.zeros(frames, vision_dim), **labels)


class _LiveBytes(TorchDispatchMode):
    """Adds up the storages that operations make, as long as they live.

    Attributes:
        peak: most bytes alive at once.
    """

    def __init__(self, known: list[Tensor | None]) -> None:
        super().__init__()
        self._storages: dict[int, Any] = {}
        self._alive = self.peak = 0
        for tensor in known:
            if tensor is not None:
                storage = tensor.untyped_storage()
                self._storages[id(storage)] = weakref.ref(storage)

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._storages:
            return

        def gone(_: Any) -> None:
            self._storages.pop(key, None)
            self._alive -= size

        self._storages[key] = weakref.ref(storage, gone)
        self._alive += size
        self.peak = max(self.peak, self._alive)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._see, made)
        return made
