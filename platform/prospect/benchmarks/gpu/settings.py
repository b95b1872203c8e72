"""Settings of suite=gpu. Light: it runs where the other suites' packages are not installed."""

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from prospect.benchmarks.engine.settings import EngineSuite
from prospect.settings import Settings

Stage = Literal["missing", "tests", "floor", "attention", "saturation", "paced", "lora", "smolvlm", "siglip"]
"""In the order in which they run."""

REHEARSAL: dict[str, Any] = {
    "base": "tiny",
    "second_base": "tiny:smolvlm",
    "dtype": "float32",
    "limits": dict.fromkeys(get_args(Stage), 300),
    "vision_dim": 16,
    "context": 384,
    "speak_rate": 0.25,
    "utterance_tokens": 3,
    "copied_mib": 64,
    "floor_frames": 20,
    "attention_sessions": 2,
    "saturated": (1, 2),
    "paced": (2,),
    "most_sessions": 3,
    "decisions": 6,
    "paced_seconds": 0.5,
    "lora_tokens": 64,
    "lora_steps": 1,
    "encoder": "prospect-tiny",
    "encoder_size": 64,
    "encoder_batch": 4,
    "encoder_compiled": (False,),
    "encoder_seconds": 0.1,
}
"""What a rehearsal has in place of the defaults."""


class StageLimits(Settings):
    """Seconds after which a stage is ended; together less than six minutes."""

    missing: float = Field(default=25, gt=0)
    """What is missing, with the start of the process that the other stages share."""
    tests: float = Field(default=38, gt=0)
    """The CUDA tests."""
    floor: float = Field(default=25, gt=0)
    """One session, with the start of the language model that the next three stages share."""
    attention: float = Field(default=38, gt=0)
    """Attention backends."""
    saturation: float = Field(default=42, gt=0)
    """Sessions in saturation."""
    paced: float = Field(default=88, gt=0)
    """Sessions at 2 frames/s."""
    lora: float = Field(default=37, gt=0)
    """A LoRA step."""
    smolvlm: float = Field(default=24, gt=0)
    """One session of the second backbone, with its start."""
    siglip: float = Field(default=33, gt=0)
    """The image encoder."""


class GpuSuite(Settings):
    """One card: CUDA tests, weight-streaming floor, attention, sessions, a LoRA step and the encoder."""

    name: Literal["gpu"] = "gpu"
    """Chosen by suite=gpu."""
    rehearse: bool = False
    """Run every stage on the CPU with a tiny model. Its numbers are marked, and say nothing about a GPU."""
    stages: tuple[Stage, ...] = Field(default=get_args(Stage), min_length=1)
    """Stages to run, in their own order."""
    limits: StageLimits = StageLimits()
    """Seconds that each stage may take."""
    results: Path | None = None
    """Folder of the raw JSON; default: `benchmarks` below the storage root."""
    commit: str | None = Field(default=None, min_length=7)
    """Commit of the tree, where git cannot tell."""
    base: str = "meta-llama/Llama-3.2-3B-Instruct"
    """Geometry of the language model, with random weights."""
    second_base: str = "HuggingFaceTB/SmolVLM2-2.2B-Instruct"
    """That of the other backbone, whose single session is measured too."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of the language model and of the encoder."""
    vision_dim: int = Field(default=1152, ge=2)
    """D of the random frames, one token each."""
    context: int = Field(default=4096, ge=64)
    """Tokens of a full session; sessions start within one measurement of it."""
    speak_rate: float = Field(default=0.05, ge=0, le=0.5)
    """Share of the frames at which the assistant speaks, in saturation and paced."""
    utterance_tokens: int = Field(default=20, ge=1)
    """Tokens of every utterance."""
    decisions: int = Field(default=1050, ge=1)
    """Fewest decisions of a measurement, so that its percentiles can be printed."""
    copied_mib: int = Field(default=2048, ge=1)
    """MiB that are copied to measure the memory's bandwidth; far more than any cache holds."""
    floor_frames: int = Field(default=1050, ge=1)
    """Frames of the single session that is compared with the floor."""
    attention_sessions: int = Field(default=16, ge=1)
    """Sessions for which attention backends are compared."""
    saturated: tuple[int, ...] = (1, 4, 16, 64, 128)
    """Numbers of sessions in saturation."""
    paced: tuple[int, ...] = (16, 64, 128)
    """Numbers of sessions at 2 frames/s, before the highest is looked for."""
    paced_seconds: float = Field(default=10.0, gt=0)
    """Shortest paced measurement; as long as `decisions` take where that is more."""
    most_sessions: int = Field(default=512, ge=1)
    """Number of sessions that the search for the highest does not exceed."""
    lora_tokens: int = Field(default=4096, ge=64)
    """Tokens of a LoRA step."""
    lora_steps: int = Field(default=10, ge=1)
    """Timed LoRA steps of each way."""
    lora_cap: float = Field(default=24.0, gt=0)
    """GiB that a LoRA step may use in the capped measurement."""
    encoder: str = "ViT-SO400M-14-SigLIP-384"
    """Image tower of open_clip, with random weights."""
    encoder_size: int = Field(default=384, ge=8)
    """Side of its square picture, pixels."""
    encoder_batch: int = Field(default=128, ge=1)
    """Pictures a forward pass."""
    encoder_compiled: tuple[bool, ...] = (False, True)
    """Whether torch.compile makes the tower faster, for each measurement."""
    encoder_seconds: float = Field(default=4.0, gt=0)
    """Seconds of each measurement."""

    @model_validator(mode="before")
    @classmethod
    def _rehearsed(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("rehearse") in (True, "true", "True"):
            return {**REHEARSAL, **values}
        return values

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Where all stages run."""
        return "cpu" if self.rehearse else "cuda"

    def engine(self, **changes: Any) -> EngineSuite:
        """The engine benchmark's settings for this card."""
        return EngineSuite(
            base=self.base,
            dtype=self.dtype,
            device=self.device,
            vision_dim=self.vision_dim,
            contexts=(self.context,),
            utterance_tokens=self.utterance_tokens,
            **{"speak_rate": self.speak_rate, **changes},
        )
