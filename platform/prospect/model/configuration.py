"""The saved architecture of a Llama backbone, `DSTProActConfig`."""

from typing import Any, Self

from transformers import AutoConfig, LlamaConfig

from prospect.model.settings import ModelSettings


class DSTProActConfig(LlamaConfig):
    """A Llama's configuration with projector, grammar tokens and heads."""

    model_type = "dst_proact_llama"

    vision_dim: int = 1152
    tokens_per_frame: int = 1
    fingerprint: str = ""
    """Fingerprint of the embeddings that the model was trained on (docs/architecture.md#embedding-store)."""
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
    def from_base(cls, base: LlamaConfig, settings: ModelSettings, **given: Any) -> Self:
        """The base's configuration with the settings' heads; `given` sets further fields."""
        parts = ("decision_backend", "decision_head", "state_head_size", "whiten_frames", "frame_noise")
        kept = {key: value for key, value in base.to_dict().items() if key not in ("model_type", "architectures")}
        return cls(**{**kept, **{name: getattr(settings, name) for name in parts}, **given})


AutoConfig.register("dst_proact_llama", DSTProActConfig)
