"""Activation memory of a training step, measured on fake tensors: shapes without numbers.

Forward and backward passes of a one-layer and a two-layer model are run; every further layer costs as much as the
second.
"""

import weakref
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedConfig

from prospect.data.batches import Batch
from prospect.dialogue.sequence import TextTask
from prospect.model.adapters import adapt, unwrap
from prospect.model.geometry import base_geometry, empty_model
from prospect.model.interface import DSTModel
from prospect.model.losses import term_sums
from prospect.model.packing import ATTENTION, Packing
from prospect.model.settings import LossSettings, ModelSettings
from prospect.training.settings import TrainingSettings

if TYPE_CHECKING:
    from peft import PeftModel

TEXT_SHARE = 0.4
"""Assumed share of tokens with text labels; the sample corpus, which talks much, has 0.41."""
STEPS = 8
"""Assumed steps of a recipe, for the state head."""


def adapted_shape(base: PreTrainedConfig, settings: ModelSettings, vision_dim: int) -> "DSTModel | PeftModel":
    """The model as it is trained, on the meta device; 4-bit weights have the shape of full ones.

    Args:
        base: geometry of the base.
        settings: heads and adaptation.
        vision_dim: D of the embeddings.
    """
    whole = "full" if settings.adaptation == "full" else "lora"
    return adapt(empty_model(base, settings, vision_dim), settings.model_copy(update={"adaptation": whole}))


def activation_bytes(
    settings: ModelSettings,
    training: TrainingSettings,
    lengths: tuple[int, ...],
    vision_dim: int,
    trained: torch.dtype,
) -> int:
    """Peak bytes of a forward and a backward pass, without weights, gradients and the optimizer's state.

    Args:
        settings: the model.
        training: losses and activation checkpointing.
        lengths: tokens of each clip of the micro-batch.
        vision_dim: D of the embeddings.
        trained: dtype in which the backend keeps trainable weights.
    """
    layers = base_geometry(settings).get_text_config().num_hidden_layers
    one, two = (
        _pass_bytes(
            settings,
            training.losses,
            training.activation_checkpointing,
            lengths,
            vision_dim,
            trained,
            training.zero_stage == 3,
            number,
        )
        for number in (1, 2)
    )
    return two + (layers - 2) * (two - one)


@lru_cache(maxsize=64)
def _pass_bytes(
    settings: ModelSettings,
    losses: LossSettings,
    checkpointing: bool,
    lengths: tuple[int, ...],
    vision_dim: int,
    trained: torch.dtype,
    partitioned: bool,
    layers: int,
) -> int:
    """Peak bytes with `layers` layers; cached, because one job plans several times."""
    geometry = base_geometry(settings)
    geometry.get_text_config().num_hidden_layers = layers
    model = adapted_shape(geometry, settings, vision_dim)
    inner, dtype = unwrap(model).train(), getattr(torch, settings.dtype)
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        _make_fake(model, trained)
        inner.checkpoint_layers(checkpointing)
        inner.logits_in_chunks = not partitioned
        inner.text.set_attn_implementation(ATTENTION)
        packing, batch = Packing.of(lengths, "cpu"), fake_batch(lengths, vision_dim)
        embeddings = torch.empty(
            1, sum(lengths), geometry.get_text_config().hidden_size, dtype=dtype, requires_grad=True
        )
        known = [*model.parameters(), *model.buffers(), embeddings, *(p.grad for p in model.parameters())]
        with _LiveBytes(known) as live:
            kwargs = {"packing": packing, "position_ids": packing.position_ids, "use_cache": False}
            flat = inner.text(inputs_embeds=embeddings, **kwargs).last_hidden_state[0]
            term_sums(inner, flat, batch, losses, flat.new_zeros(())).sum().backward()
    return live.peak


def _make_fake(model: nn.Module, trained: torch.dtype) -> None:
    """Replace meta weights by fake CPU tensors, with gradients; trainable weights get the dtype `trained`."""
    replaced: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, meta in [(n, p) for n, p in module._parameters.items() if p is not None]:
            if id(meta) not in replaced:
                fake = torch.empty(meta.shape, dtype=trained if meta.requires_grad else meta.dtype)
                replaced[id(meta)] = nn.Parameter(fake, requires_grad=meta.requires_grad)
                if meta.requires_grad:
                    replaced[id(meta)].grad = torch.empty_like(fake)
            module._parameters[name] = replaced[id(meta)]
        for name, meta_buffer in [(n, b) for n, b in module._buffers.items() if b is not None]:
            module._buffers[name] = torch.empty(meta_buffer.shape, dtype=meta_buffer.dtype)


def fake_batch(lengths: tuple[int, ...], vision_dim: int) -> Batch:
    """A typical micro-batch: `TEXT_SHARE` of its tokens are labelled text, all others are decided frames."""
    tokens = sum(lengths)
    texts, frames = int(tokens * TEXT_SHARE), tokens - int(tokens * TEXT_SHARE)
    sizes = {
        "decisions": frames, "speak": frames, "update": frames, "after_delta": 0, "after_delta_speak": 0,
        "text_positions": texts, "text_targets": texts, "text_tasks": texts, "step_positions": STEPS * len(lengths),
        "state_frames": frames * STEPS, "state_steps": frames * STEPS, "state_labels": frames * STEPS,
        "lookups": 0, "looked_up": 0, "lookup_words": 0,
    }  # fmt: skip
    labels = {name: torch.zeros(size, dtype=torch.long) for name, size in sizes.items()}
    labels["text_tasks"] += TextTask.SPEAKING
    ids = torch.zeros(1, tokens, dtype=torch.long)
    return Batch([""] * len(lengths), True, lengths, ids, torch.zeros(frames, vision_dim), guides=False, **labels)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations create, while they live.

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

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._storages:
            return

        def freed(_: Any) -> None:
            self._storages.pop(key, None)
            self._alive -= size

        self._storages[key] = weakref.ref(storage, freed)
        self._alive += size
        self.peak = max(self.peak, self._alive)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, made)
        return made
