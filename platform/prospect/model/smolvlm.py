"""`DSTSmolVLMWithStrategies`: SmolVLM2's class as a backbone. Its text trunk is a Llama."""

from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    DynamicCache,
    LlamaConfig,
    LlamaModel,
    PreTrainedConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from prospect.model.configuration import DSTConfig, tiny_llama
from prospect.model.interface import DSTModel
from prospect.model.settings import ModelSettings, TinyGeometry
from prospect.vision.smolvlm import TINY_TOWER


class DSTSmolVLMConfig(DSTConfig, SmolVLMConfig):
    """A SmolVLM's configuration with projector, grammar tokens and heads."""

    model_type = "dst_smolvlm"

    keeps_vision: bool = False
    """Whether the model has its vision tower and connector: frames come from an encoder, so that they are dropped once
    a base is read."""

    @classmethod
    def from_base(
        cls, base: PreTrainedConfig, settings: ModelSettings, vocab_size: int | None = None, **given: Any
    ) -> Self:
        """See `DSTConfig.from_base`; the connector is read for a projector that begins as it."""
        return super().from_base(base, settings, vocab_size, keeps_vision=settings.projector == "linear", **given)


class DSTSmolVLMWithStrategies(DSTModel, SmolVLMForConditionalGeneration):
    """A SmolVLM with decision heads and a state head; frames are what its connector makes of pictures.

    The earlier project's class of this name held its context strategies as well. Here they belong to the engine
    (`prospect.streaming`), for every backbone.
    """

    config_class = DSTSmolVLMConfig
    _keys_to_ignore_on_load_unexpected = [r"^model\.(vision_model|connector)\."]  # noqa: RUF012  # as transformers has it

    def __init__(self, config: DSTSmolVLMConfig) -> None:
        super().__init__(config)
        self.add_heads()
        self.post_init()
        if not config.keeps_vision:
            self.drop_vision()

    @property
    def text(self) -> LlamaModel:
        return self.model.text_model

    @property
    def text_config(self) -> LlamaConfig:
        return self.config.text_config

    @property
    def vision(self) -> list[nn.Module]:
        return [self.model.vision_model, self.model.connector] if self.config.keeps_vision else []

    @property
    def connector(self) -> nn.Linear:
        return self.model.connector.modality_projection.proj

    def drop_vision(self) -> None:
        self.config.keeps_vision = False
        self.model.vision_model = self.model.connector = None

    def fast_greedy_generate(
        self, inputs_embeds: Tensor, past_key_values: DynamicCache | None = None, max_length: int = 64
    ) -> tuple[Tensor, DynamicCache]:
        """Generate greedily behind embeddings [1, S, H]; see `fast_greedy_generate_with_dst`."""
        ids, cache, _ = self.fast_greedy_generate_with_dst(inputs_embeds, past_key_values, max_length)
        return ids, cache

    @torch.inference_mode()
    def fast_greedy_generate_with_dst(
        self, inputs_embeds: Tensor, past_key_values: DynamicCache | None = None, max_length: int = 64
    ) -> tuple[Tensor, DynamicCache, dict[str, Tensor]]:
        """The earlier project's call: decide at the last position, then generate greedily up to a stop token.

        The engine does the same for many sessions at once; this is for people who come from there. Every token is fed
        once, so that the cache can go on from what is returned.

        Args:
            inputs_embeds: [1, S, H], behind what the cache holds (`embed`).
            past_key_values: of this model; None: a new one.
            max_length: most tokens that are generated.

        Returns:
            Ids [1, N], the cache with them in it, and the probabilities `speaking_decision` and `dst_update` at the
            last position of the embeddings.
        """
        cache = past_key_values or DynamicCache(config=self.text_config)
        self._attend_by("sdpa")
        hidden = self.text(inputs_embeds=inputs_embeds, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
        speak, update = self.decision_probabilities(hidden[0])
        decided = {"speaking_decision": speak, "dst_update": update}
        ids: list[int] = []
        while len(ids) < max_length:
            ids.append(int(self.lm_head(hidden).argmax(-1)))
            fed = self.text.embed_tokens(torch.tensor([[ids[-1]]], device=hidden.device))
            hidden = self.text(inputs_embeds=fed, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
            if ids[-1] in (self.config.stop_ids or ()):
                break
        return torch.tensor([ids], device=hidden.device), cache, decided


def tiny_smolvlm(tiny: TinyGeometry, **given: Any) -> SmolVLMConfig:
    """Configuration of a SmolVLM to train from scratch; `given` sets further fields of its text trunk."""
    text = tiny_llama(tiny, **given)
    return SmolVLMConfig(text_config=text, tie_word_embeddings=True, **TINY_TOWER)


AutoConfig.register(DSTSmolVLMConfig.model_type, DSTSmolVLMConfig)
AutoModelForImageTextToText.register(DSTSmolVLMConfig, DSTSmolVLMWithStrategies)
