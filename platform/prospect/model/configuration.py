"""What a saved DST model's configuration has beside that of its base."""

from dataclasses import dataclass
from typing import Any, Self

from transformers import LlamaConfig, PreTrainedConfig

from prospect.model.settings import ModelSettings, TinyGeometry


@dataclass(kw_only=True)
class DSTConfig:
    """Fields of projector, grammar tokens and heads; a backbone's config derives from this and from its base's."""

    vision_dim: int = 1152
    tokens_per_frame: int = 1
    fingerprint: str = ""
    """Fingerprint of the embeddings that the model was trained on (docs/architecture.md#embedding-store)."""
    projector: str = "mlp"
    decision_backend: str = "heads"
    decision_head: str = "linear"
    state_head: str = "steps"
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
    def from_base(
        cls, base: PreTrainedConfig, settings: ModelSettings, vocab_size: int | None = None, **given: Any
    ) -> Self:
        """The base's configuration with the settings' heads.

        Args:
            base: of the base.
            settings: of the model.
            vocab_size: of the model; None: the base's.
            given: further fields.
        """
        parts = (
            "projector", "decision_backend", "decision_head", "state_head", "state_head_size", "whiten_frames",
            "frame_noise",
        )  # fmt: skip
        kept = {key: value for key, value in base.to_dict().items() if key not in ("model_type", "architectures")}
        config: Any = cls(**{**kept, **{name: getattr(settings, name) for name in parts}, **given})
        if vocab_size is not None:
            config.get_text_config().vocab_size = vocab_size
        return config


def tiny_llama(tiny: TinyGeometry, **given: Any) -> LlamaConfig:
    """A Llama to train from scratch, as a base or as the text trunk of one; `given` sets further fields."""
    sizes = {
        "vocab_size": tiny.vocab_size,
        "hidden_size": tiny.hidden_size,
        "intermediate_size": tiny.intermediate_size,
        "num_hidden_layers": tiny.num_layers,
        "num_attention_heads": tiny.num_heads,
        "max_position_embeddings": 8192,
        "initializer_range": tiny.hidden_size**-0.5,
        "tie_word_embeddings": True,
    }
    return LlamaConfig(**{**sizes, **given})
