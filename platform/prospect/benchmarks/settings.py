"""What each suite of jobs/benchmark.py can be told. Light, because every job's configuration imports it."""

from typing import Annotated, Literal

from pydantic import Field

from prospect.settings import Settings


class EmbedSuite(Settings):
    """The embedding pipeline against the bare encoder, the bare decoder and the peers' ways."""

    name: Literal["embed"] = "embed"


class LabelsSuite(Settings):
    """The aligner against gold steps and against simpler methods."""

    name: Literal["labels"] = "labels"


class TrainSuite(Settings):
    """The training step against the Hugging Face Trainer, and against itself without packing."""

    name: Literal["train"] = "train"
    base: str = "package:smollm2_135m"
    """As `model.base`; the same for every way."""
    lora_rank: int = Field(default=16, ge=1)
    batch_size: int = Field(default=8, ge=1)
    """Clips of an optimizer step."""
    micro_batch_size: int = Field(default=4, ge=1)
    """Clips computed at once."""
    num_steps: int = Field(default=2, ge=1)
    """Timed optimizer steps of each way."""
    max_seq_len: int = Field(default=4096, ge=64)
    """Tokens of the longest clip."""
    negative_rate: float = Field(default=0.1, gt=0, le=1)
    num_threads: int | None = Field(default=None, ge=1)
    """Threads of torch; default: one a core."""
    vision_dim: int = Field(default=1152, ge=1)
    """D of the random frames."""
    gpu_tokens: int = Field(default=4096, ge=64)
    """Tokens of a micro-batch on a GPU, with the geometry of Llama-3.2-3B."""
    gpu_cap: float = Field(default=24.0, gt=0)
    """GiB that the second measurement on a GPU may use."""


Suite = Annotated[EmbedSuite | LabelsSuite | TrainSuite, Field(discriminator="name")]
