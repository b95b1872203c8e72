"""`DSTProActLlamaForCausalLM`: Llama's class (Llama 3.2, SmolLM2, tiny) as a backbone."""

from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel

from prospect.model.configuration import DSTConfig
from prospect.model.interface import DSTModel


class DSTProActConfig(DSTConfig, LlamaConfig):
    """A Llama's configuration with projector, grammar tokens and heads."""

    model_type = "dst_proact_llama"


class DSTProActLlamaForCausalLM(DSTModel, LlamaForCausalLM):
    """A Llama with projected frames, decision heads and a state head."""

    config_class = DSTProActConfig

    def __init__(self, config: DSTProActConfig) -> None:
        super().__init__(config)
        self.add_heads()
        self.post_init()

    @property
    def text(self) -> LlamaModel:
        return self.model

    @property
    def text_config(self) -> LlamaConfig:
        return self.config


AutoConfig.register(DSTProActConfig.model_type, DSTProActConfig)
AutoModelForCausalLM.register(DSTProActConfig, DSTProActLlamaForCausalLM)
