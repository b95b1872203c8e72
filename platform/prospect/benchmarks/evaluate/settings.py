"""Settings of suite=evaluate. Light, because every job's configuration imports it."""

from typing import Literal, get_args

from pydantic import Field

from prospect.settings import Settings

Stage = Literal["encoder", "matcher"]
"""In the order in which they run."""


class EvaluateSuite(Settings):
    """What scoring takes, part by part: sentence vectors, and the assignment of utterances to references."""

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
