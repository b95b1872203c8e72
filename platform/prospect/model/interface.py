"""What every backbone offers: a text trunk with projected frames, decision heads and a state head.

Heads, losses, adapters, packing, checkpoints, memory plans, the engine and serving use only `DSTModel`.
`backbones.py` is the registry of backbones.

Shapes: B sequences, S tokens, H width, D embedding width, I tokens a frame.
"""

from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from prospect.errors import DataError
from prospect.model.heads import BinaryHead, FrameProjector, FrameStateHead, StateHead

if TYPE_CHECKING:
    Module = PreTrainedModel
else:
    Module = nn.Module  # a backbone brings the PreTrainedModel that transformers made for it


@dataclass(frozen=True)
class KVGeometry:
    """Sizes of the keys and values that a token has in the KV cache."""

    layers: int
    heads: int
    """Key heads."""
    head_dim: int
    groups: int
    """Query heads that share a key head."""

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "KVGeometry":
        """Of a base's configuration."""
        text: Any = config.get_text_config()
        heads = text.num_key_value_heads or text.num_attention_heads
        head_dim = text.head_dim or text.hidden_size // text.num_attention_heads
        return cls(text.num_hidden_layers, heads, head_dim, text.num_attention_heads // heads)

    def bytes_per_token(self, element_size: int) -> int:
        """KV cache bytes of a token; `element_size` is in bytes."""
        return 2 * self.layers * self.heads * self.head_dim * element_size


class DSTModel(Module):
    """A language model with projected frames, decision heads and a state head.

    It decides by heads, or by three rows of `lm_head`, which is otherwise used for text only. A backbone derives from
    this and from its class in transformers, calls `add_heads` in its constructor, and defines `text` and `text_config`.
    """

    config: Any
    """A `prospect.model.configuration.DSTConfig` that is also transformers' own."""
    lm_head: nn.Linear
    mm_projector: FrameProjector
    speaking_decision_head: BinaryHead
    dst_update_head: BinaryHead
    dst_state_head: StateHead | FrameStateHead

    logits_in_chunks = True
    """Whether the text loss computes logits in chunks. False with partitioned weights, as all ranks must gather
    `lm_head` equally often."""

    @property
    @abstractmethod
    def text(self) -> LlamaModel:
        """The text trunk: `embed_tokens`, `layers`, `norm`."""

    @property
    @abstractmethod
    def text_config(self) -> LlamaConfig:
        """Widths and depths of the text trunk."""

    @property
    def text_path(self) -> str:
        """Where the text trunk is among the model's modules."""
        return next(name for name, module in self.named_modules() if module is self.text)

    @property
    def vision(self) -> list[nn.Module]:
        """The base's own modules for pictures, which never train; frames come from an encoder."""
        return []

    @property
    def connector(self) -> nn.Linear | None:
        """The base's own projection of frames."""
        return None

    def drop_vision(self) -> None:
        """Free the base's own modules for pictures."""

    @property
    def kv_geometry(self) -> KVGeometry:
        """Sizes of the KV cache."""
        return KVGeometry.of(self.text_config)

    def add_heads(self) -> None:
        """Add projector and heads, randomly initialised."""
        config, width = self.config, self.text_config.hidden_size
        self.mm_projector = FrameProjector(
            config.vision_dim, width, config.projector, config.whiten_frames, config.frame_noise
        )
        self.speaking_decision_head = BinaryHead(width, config.decision_head)
        self.dst_update_head = BinaryHead(width, config.decision_head)
        frame_only = config.state_head == "frame"
        self.dst_state_head = FrameStateHead(width) if frame_only else StateHead(width, config.state_head_size)

    def embed(self, input_ids: Tensor, frames: Tensor, *, aligned: bool = False) -> Tensor:
        """Token embeddings [*, H] with projected `frames` in the rows of the image tokens.

        Args:
            input_ids: [*].
            frames: [N, D], one for each image token, in order.
            aligned: whether `frames` are [*, D] instead, one for each token; those of text tokens are not used. No
                shape then depends on the tokens and nothing is read on the host: a CUDA graph can capture the call.

        Raises:
            DataError: N differs from the number of image tokens, or D from the model's.
        """
        is_image = input_ids == self.config.grammar_ids["<image>"]
        if frames.shape[-1] != self.config.vision_dim:
            raise DataError(
                f"embedding: has {frames.shape[-1]} dimensions, the model was built for {self.config.vision_dim}",
                field="embedding",
            )
        if not aligned and int(is_image.sum()) != len(frames):
            raise DataError(
                f"frames: {len(frames)} feature rows for {int(is_image.sum())} image tokens", field="frames"
            )
        embeddings = self.text.embed_tokens(input_ids)
        projected = self.mm_projector(frames).to(embeddings.dtype)
        mask = is_image.unsqueeze(-1)
        return torch.where(mask, projected, embeddings) if aligned else embeddings.masked_scatter(mask, projected)

    def trunk(self, input_ids: Tensor, frames: Tensor, attention: str = "sdpa", **kwargs: Any) -> Tensor:
        """Hidden states [B, S, H] after the final norm; `lm_head` is not touched.

        `attention` names one of transformers' attention functions; `kwargs` go to it.
        """
        return self.hidden_states(self.embed(input_ids, frames), attention, **kwargs)

    def hidden_states(self, embeddings: Tensor, attention: str = "sdpa", **kwargs: Any) -> Tensor:
        """`trunk` from embeddings [B, S, H] instead of tokens and frames."""
        self._attend_by(attention)
        return self.text(inputs_embeds=embeddings, use_cache=False, **kwargs).last_hidden_state

    def _attend_by(self, attention: str) -> None:
        """Choose the attention function for good: checkpointed layers run it again in the backward pass."""
        if self.text_config._attn_implementation != attention:
            self.text.set_attn_implementation(attention)

    def checkpoint_layers(self, on: bool) -> None:
        """Switch activation checkpointing: keep one hidden state a layer, recompute the layer in the backward pass."""
        layers: list[Any] = [module for module in self.modules() if isinstance(module, GradientCheckpointingLayer)]
        if any(layer.gradient_checkpointing != on for layer in layers):
            recompute = partial(checkpoint, use_reentrant=False)
            for layer in layers:
                layer.gradient_checkpointing, layer._gradient_checkpointing_func = on, recompute

    def decision_logits(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Speak and update logits, each [*], of the `heads` back-end."""
        return self.speaking_decision_head(hidden), self.dst_update_head(hidden)

    def decision_rows(self, hidden: Tensor) -> Tensor:
        """Logits [*, 3] of `[SILENT]`, `[DST]`, `[ASST]`: the three rows of `lm_head` of the `token` back-end."""
        ids = [self.config.grammar_ids[token] for token in ("[SILENT]", "[DST]", "[ASST]")]
        return torch.nn.functional.linear(hidden, self.lm_head.weight[ids]).float()

    def decision_probabilities(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities of speaking and updating, each [*], at a frame's last image token.

        The first is also read at a delta's stop token.
        """
        if self.config.decision_backend == "heads":
            speak, update = self.decision_logits(hidden)
            return torch.sigmoid(speak), torch.sigmoid(update)
        _, update, speak = torch.softmax(self.decision_rows(hidden), -1).unbind(-1)
        return speak, update

    def forward(
        self,
        input_ids: Tensor | None = None,
        frames: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Vocabulary logits [B, S, V] at every position; training and streaming use `trunk` instead."""
        self._attend_by("sdpa")
        if inputs_embeds is None and input_ids is not None and frames is not None:
            inputs_embeds, input_ids = self.embed(input_ids, frames), None
        return super().forward(input_ids=input_ids, inputs_embeds=inputs_embeds, **kwargs)
