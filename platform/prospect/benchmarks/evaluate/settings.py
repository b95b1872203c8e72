"""Settings of suite=evaluate. Light, because every job's configuration imports it."""

from typing import Literal, get_args

from pydantic import Field

from prospect.settings import Place, Settings

Stage = Literal["encoder", "matcher", "streaming"]
"""In the order in which they run."""


class StreamingStage(Settings):
    """Videos streamed in groups, one at a time, one at a time as the peers do it, and in the latency-aware mode."""

    base: Place = "tiny"
    """Geometry: a base of configs/model, or `tiny`; the weights are random."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the model."""
    device: Literal["cpu", "cuda", "auto"] = "auto"
    """`auto`: the GPU, where there is one."""
    num_threads: int | None = Field(default=None, ge=1)
    """Threads of torch; default: one a core."""
    vision_dim: int = Field(default=1152, ge=1)
    """D of the random frames; one token each."""
    videos: int = Field(default=16, ge=1)
    """Videos, all of one length."""
    frames: int = Field(default=120, ge=1)
    """Frames of each, at 2 a second."""
    context: int = Field(default=1024, ge=64)
    """Tokens of a full session; it starts with a quarter of them."""
    speak_rate: float = Field(default=0.05, ge=0, le=0.5)
    """Share of the frames at which the assistant speaks."""
    utterance_tokens: int = Field(default=20, ge=1)
    """Tokens of every utterance."""
    speeds: tuple[float, ...] = (1.0, 4.0)
    """Speeds of the latency-aware mode that are measured."""
    rounds: int = Field(default=2, ge=1)
    """Times that every way is measured, in turns; the fastest counts, which is the least disturbed one."""
    seed: int = 0
    """Of the random weights, frames and moments of speech."""


class EvaluateSuite(Settings):
    """The parts of an evaluation: sentence vectors, the assignment of utterances to references, streaming."""

    name: Literal["evaluate"] = "evaluate"
    """Chosen by suite=evaluate."""
    stages: tuple[Stage, ...] = Field(default=get_args(Stage), min_length=1)
    """Stages to run, in their own order."""
    rounds: int = Field(default=3, ge=1)
    """Measurements of each way, in turn; the median is shown."""
    sentences: int = Field(default=256, ge=2)
    """Distinct sentences of 4 to 40 words that each round encodes, with `evaluation.similarity`."""
    videos: int = Field(default=50, ge=1)
    """Videos that the matcher is given in each round."""
    frames: int = Field(default=1000, ge=1)
    """Frames of each, two a second."""
    utterances: int = Field(default=60, ge=1)
    """Of the reference in each video; the system says as many at other frames, some of them in other words."""
    seed: int = 0
    """Of sentences and frames."""
    streaming: StreamingStage = StreamingStage()
    """Videos a second, and what the latency-aware mode costs."""
