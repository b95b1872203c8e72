"""A Llama with projected frames, decision heads and a state head (docs/architecture.md#model).

Shapes: B sequences, S tokens, H width, D embedding width, I tokens a frame.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from prospect.errors import DataError
from prospect.model.configuration import DSTProActConfig
from prospect.model.heads import BinaryHead, FrameProjector, StateHead


class DSTProActLlamaForCausalLM(LlamaForCausalLM):
    """The trunk decides by heads or by three rows of `lm_head`; `lm_head` is otherwise for text alone."""

    config_class = DSTProActConfig

    logits_in_chunks = True
    """The text's loss computes logits a chunk at a time. False where the weights are parted over ranks, which have to
    gather `lm_head` equally often."""

    def __init__(self, config: DSTProActConfig) -> None:
        super().__init__(config)
        self.mm_projector = FrameProjector(
            config.vision_dim, config.hidden_size, config.whiten_frames, config.frame_noise
        )
        self.speaking_decision_head = BinaryHead(config.hidden_size, config.decision_head)
        self.dst_update_head = BinaryHead(config.hidden_size, config.decision_head)
        self.dst_state_head = StateHead(config.hidden_size, config.state_head_size)
        self.post_init()

    def embed(self, input_ids: Tensor, frames: Tensor) -> Tensor:
        """Token embeddings [*, H] with the image tokens' rows replaced by projected `frames` [N, D], in order.

        Raises:
            DataError: N differs from the number of image tokens, or D from the model's.
        """
        is_image = input_ids == self.config.grammar_ids["<image>"]
        if frames.shape[-1] != self.config.vision_dim:
            raise DataError(
                f"embedding: has {frames.shape[-1]} dimensions, the model was built for {self.config.vision_dim}",
                field="embedding",
            )
        if int(is_image.sum()) != len(frames):
            raise DataError(
                f"frames: {len(frames)} feature rows for {int(is_image.sum())} image tokens", field="frames"
            )
        embeddings = self.model.embed_tokens(input_ids)
        projected = self.mm_projector(frames).to(embeddings.dtype)
        return embeddings.masked_scatter(is_image.unsqueeze(-1), projected)

    def trunk(self, input_ids: Tensor, frames: Tensor, attention: str = "sdpa", **kwargs: Any) -> Tensor:
        """Hidden states [B, S, H] after the final norm; `lm_head` is not touched.

        `attention` names one of transformers' attention functions; `kwargs` go to it.
        """
        return self.hidden_states(self.embed(input_ids, frames), attention, **kwargs)

    def hidden_states(self, embeddings: Tensor, attention: str = "sdpa", **kwargs: Any) -> Tensor:
        """The same from embeddings [B, S, H]."""
        self._attend_by(attention)
        return self.model(inputs_embeds=embeddings, use_cache=False, **kwargs).last_hidden_state

    def _attend_by(self, attention: str) -> None:
        """It stays after the call: checkpointed layers run it again in the backward pass."""
        if self.config._attn_implementation != attention:
            self.set_attn_implementation(attention)

    def checkpoint_layers(self, on: bool) -> None:
        """Whether training keeps one hidden state a layer and computes the layer again in the backward pass."""
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
        """To speak and to update, each [*], at a frame's last image token; the first also at a delta's stop token."""
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


AutoModelForCausalLM.register(DSTProActConfig, DSTProActLlamaForCausalLM)
