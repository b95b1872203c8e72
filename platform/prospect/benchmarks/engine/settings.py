"""What suite=engine can be told. Apart, because it also runs where the other suites' packages are not installed."""

from typing import Literal

from pydantic import Field

from prospect.settings import Place, Settings

System = Literal["engine", "loop", "padded"]
"""This engine; one session after another with a DynamicCache each, as the peers have it; all sessions in one padded
batch in lock-step."""


class EngineSuite(Settings):
    """Live sessions at 2 frames/s, paced and in saturation, against the peers' way and a padded batch."""

    name: Literal["engine"] = "engine"
    """Chosen by suite=engine."""
    base: Place = "package:smollm2_135m"
    """Geometry: a base of configs/model, or `tiny`."""
    weights: Literal["random", "base"] = "random"
    """`base` loads the base's own; speed and memory are the same, and random ones need no download."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the model."""
    device: Literal["cpu", "cuda", "auto"] = "auto"
    """`auto`: the GPU, where there is one."""
    num_threads: int | None = Field(default=None, ge=1)
    """Threads of torch; default: one a core."""
    vision_dim: int = Field(default=1152, ge=1)
    """D of the random frames; one token each."""
    systems: tuple[System, ...] = Field(default=("engine", "loop", "padded"), min_length=1)
    """What is measured: this engine, a loop over sessions, a padded batch."""
    sessions: tuple[int, ...] = Field(default=(1, 2, 4, 8, 16, 32, 64), min_length=1)
    """Numbers of sessions that are measured, one after the other."""
    contexts: tuple[int, ...] = Field(default=(512, 2048, 4096), min_length=1)
    """Tokens of a full session (`context.max_seq_len`); sessions start within one measurement of it."""
    memory_gib: float = Field(default=12.0, gt=0)
    """Sessions whose keys and values together would take more are left out."""
    seconds: float = Field(default=20.0, gt=0)
    """Length of a paced measurement, and the longest of one in saturation."""
    saturated_frames: int = Field(default=40, ge=1)
    """Frames of a session after which a measurement in saturation ends."""
    give_up_s: float = Field(default=10.0, gt=0)
    """A paced measurement ends early where a frame has waited this long."""
    speak_rate: float = Field(default=0.05, ge=0, le=0.5)
    """Share of the frames at which the assistant speaks."""
    utterance_tokens: int = Field(default=20, ge=1)
    """Tokens of every utterance."""
    search: bool = False
    """Also look for the largest number of sessions within the two limits, by doubling and halving."""
    search_from: int = Field(default=1, ge=1)
    """Number that the search tries first."""
    most_sessions: int = Field(default=512, ge=1)
    """Number that it does not go beyond."""
    free_p99_ms: float = Field(default=100.0, gt=0)
    """Limit of the search for frames with no own generation pending."""
    all_p99_ms: float = Field(default=1000.0, gt=0)
    """Limit of the search for all frames."""
    soak_minutes: int = Field(default=0, ge=0)
    """Minutes of every session's time, as fast as they go, behind the other measurements; 0: none."""
    soak_sessions: int = Field(default=16, ge=1)
    """Sessions at once in those minutes."""
    seed: int = 0
    """Of the random weights, frames and moments of speech."""
