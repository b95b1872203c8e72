"""What each suite of jobs/benchmark.py can be told. Light, because every job's configuration imports it."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from prospect.benchmarks.engine.settings import EngineSuite
from prospect.benchmarks.evaluate.settings import EvaluateSuite
from prospect.benchmarks.gpu.settings import GpuSuite
from prospect.benchmarks.serve.settings import ServeSuite
from prospect.corpus.settings import CorpusSettings
from prospect.data.labels.aligner import AlignerSettings
from prospect.settings import LocalPath, Place, Settings
from prospect.similarity import SimilaritySettings


class EmbedSuite(Settings):
    """The embedding pipeline against the bare encoder, the bare decoder and the peers' ways."""

    name: Literal["embed"] = "embed"
    """Chosen by suite=embed."""
    backend: Literal["open_clip", "timm"] = "timm"
    """Which library builds the image tower; its weights are random."""
    model: str = "vit_small_patch16_224"
    """The image tower. It has to be slow enough on this machine for decoding to hide behind it (60 images/s)."""
    image_size: int = Field(224, ge=8)
    """Side of its square picture, pixels."""
    batch_size: int = Field(16, ge=1)
    """Pictures a forward pass."""
    num_videos: int = Field(3, ge=2)
    """Videos that the pipeline embeds in a round."""
    video_seconds: int = Field(75, ge=2)
    """Length of each: 640x360 H.264 at 30 pictures/s, drawn once."""
    rounds: int = Field(2, ge=1)
    """Pipeline runs, each between two measurements of the bare encoder and the bare decoder."""
    probe_seconds: float = Field(4.0, gt=0)
    """Seconds that each measurement of a bare part takes."""


class LabelsSuite(Settings):
    """The aligner against gold steps and against simpler methods."""

    name: Literal["labels"] = "labels"
    """Chosen by suite=labels."""
    path: LocalPath
    """Folder of the gold: goalstep_val, holoassist, egoexolearn and captaincook4d as .jsonl.gz."""
    aligner: AlignerSettings = AlignerSettings()
    similarity: SimilaritySettings = SimilaritySettings()
    """The sentence encoder that all methods share."""
    transfer_videos: int = Field(200, ge=2)
    """Videos of each data set other than GoalStep."""
    bootstrap_samples: int = Field(1000, ge=100)
    """Draws of videos behind an interval."""
    seed: int = 0
    """Of the draws behind an interval."""


class TrainSuite(Settings):
    """The training step against the Hugging Face Trainer, and against itself without packing."""

    name: Literal["train"] = "train"
    """Chosen by suite=train."""
    base: Place = "package:smollm2_135m"
    """As `model.base`; the same for every way."""
    lora_rank: int = Field(default=16, ge=1)
    """Rank of the adapters that all ways train."""
    batch_size: int = Field(default=8, ge=1)
    """Clips of an optimizer step."""
    micro_batch_size: int = Field(default=4, ge=1)
    """Clips computed at once."""
    num_steps: int = Field(default=2, ge=1)
    """Timed optimizer steps of each way."""
    max_seq_len: int = Field(default=4096, ge=64)
    """Tokens of the longest clip."""
    negative_rate: float = Field(default=0.1, gt=0, le=1)
    """As `training.sampling.negative_rate`."""
    num_threads: int | None = Field(default=None, ge=1)
    """Threads of torch; default: one a core."""
    vision_dim: int = Field(default=1152, ge=1)
    """D of the random frames."""
    gpu_tokens: int = Field(default=4096, ge=64)
    """Tokens of a micro-batch on a GPU, with the geometry of Llama-3.2-3B."""
    gpu_steps: int = Field(default=10, ge=1)
    """Timed steps of each measurement on a GPU."""
    gpu_cap: float = Field(default=24.0, gt=0)
    """GiB that the second measurement on a GPU may use."""


class ClipsSuite(Settings):
    """Cutting the configured source's dialogues into clips."""

    name: Literal["clips"] = "clips"
    """Chosen by suite=clips."""


Ablated = Literal[
    "reference", "token", "rho_1", "rho_0_2", "rho_0_01", "focal", "focal_rho_1", "no_recipe", "no_state_head", "lora"
]  # fmt: skip
"""The reference, and what differs from it in one thing; `focal_rho_1` in two."""


class AblationSuite(Settings):
    """What each part of the method is worth: one factor at a time from a reference, several seeds each."""

    name: Literal["ablation"] = "ablation"
    """Chosen by suite=ablation."""
    configurations: tuple[Ablated, ...] = Field(default=get_args(Ablated), min_length=1)
    """What is trained and scored; differences need `reference` among them."""
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    """One training each: of the initial weights, the order of clips and what is drawn from them."""
    max_steps: int = Field(default=500, ge=1)
    """Optimizer steps of each training."""
    processes: int = Field(default=2, ge=1)
    """Trainings that go on at once; each takes one core (or one GPU)."""
    corpus: CorpusSettings = CorpusSettings()
    """The sample corpus that all of them share."""


Suite = Annotated[
    EmbedSuite
    | LabelsSuite
    | ClipsSuite
    | TrainSuite
    | AblationSuite
    | EngineSuite
    | EvaluateSuite
    | GpuSuite
    | ServeSuite,
    Field(discriminator="name"),
]
