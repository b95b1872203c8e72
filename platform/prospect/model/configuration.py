"""What defines a model: the user's choice (`ModelSettings`) and the saved architecture (`DSTProActConfig`)."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator
from transformers import AutoConfig, LlamaConfig

from prospect.settings import Settings

DecisionBackend = Literal["heads", "token"]
HEADS = ("speaking", "dst_update", "dst_state")
"""The heads whose training is counted; with the token back-end the first two are rows of `lm_head`."""


class TinyGeometry(Settings):
    """A Llama trained from scratch, with a byte-level tokenizer fitted to the training text."""

    hidden_size: int = Field(default=192, ge=8)
    intermediate_size: int = Field(default=512, ge=8)
    num_layers: int = Field(default=4, ge=1)
    num_heads: int = Field(default=4, ge=1)
    vocab_size: int = Field(default=1024, ge=300)

    @model_validator(mode="after")
    def _heads_are_even(self) -> Self:
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} does not divide into num_heads {self.num_heads} of even width"
            )
        return self


class LoraSettings(Settings):
    """Low-rank adapters on the seven projections."""

    r: int = Field(default=128, ge=1)
    alpha: int = Field(default=256, ge=1)
    dropout: float = Field(default=0.05, ge=0, lt=1)


class ModelSettings(Settings):
    """Which language model, how it is adapted, and how it decides."""

    name: str = "prospect-dst"
    """Name under which finished models are registered."""
    base: str = "tiny"
    """`tiny`, `package:smollm2_135m`, or a name or path that transformers loads."""
    tiny: TinyGeometry = TinyGeometry()
    adaptation: Literal["full", "lora", "qlora"] = "lora"
    """What trains besides projector, heads and new token rows: all weights, adapters of a frozen base, or adapters
    of one whose projections are frozen in 4 bits (NF4, needs bitsandbytes)."""
    lora: LoraSettings = LoraSettings()
    decision_backend: DecisionBackend = "heads"
    decision_head: Literal["linear", "mlp"] = "linear"
    state_head_size: int = Field(default=256, ge=1)
    """Width in which a frame and a step are compared."""
    whiten_frames: bool = False
    """Decorrelate the embedding's dimensions over the training frames: for untrained encoders, whose few
    informative directions are a hundred times weaker than the others."""
    frame_noise: float = Field(default=0.0, ge=0)
    """Deviation of the Gaussian noise on frames in training, against learning single pictures by heart."""
    dtype: Literal["float32", "bfloat16"] = "float32"


class DSTProActConfig(LlamaConfig):
    """A Llama's configuration with the vision, the grammar and the heads."""

    model_type = "dst_proact_llama"

    vision_dim: int = 1152
    tokens_per_frame: int = 1
    fingerprint: str = ""
    """Fingerprint of the embeddings that the model was trained on (DESIGN 4.7)."""
    decision_backend: str = "heads"
    decision_head: str = "linear"
    state_head_size: int = 256
    whiten_frames: bool = False
    frame_noise: float = 0.0
    grammar_ids: dict[str, int] | None = None
    """Ids of `<image>`, `[USER]`, `[DST]`, `[ASST]`, `[SILENT]`, `[PAD]`."""
    stop_ids: list[int] | None = None
    trained_steps: dict[str, int] | None = None
    """Optimizer steps in which each head had labels."""
    thresholds: dict[str, dict[str, float]] | None = None
    """Calibrated `speak` and `update` thresholds that travel with the model: by dataset, and as `default`, which were
    calibrated on all datasets together, for any other."""

    @classmethod
    def on(cls, base: LlamaConfig, settings: ModelSettings, **given: Any) -> Self:
        """Of a base with the parts that the settings choose; `given` has what neither of them knows."""
        parts = ("decision_backend", "decision_head", "state_head_size", "whiten_frames", "frame_noise")
        kept = {key: value for key, value in base.to_dict().items() if key not in ("model_type", "architectures")}
        return cls(**{**kept, **{name: getattr(settings, name) for name in parts}, **given})


AutoConfig.register("dst_proact_llama", DSTProActConfig)
