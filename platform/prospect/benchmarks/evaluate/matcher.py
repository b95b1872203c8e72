"""The turn matcher: the published form beside the corrected one, on the same videos with the same vectors."""

import random
import time
from collections.abc import Sequence
from statistics import median
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from prospect.benchmarks.config import BenchmarkConfig
from prospect.benchmarks.evaluate.settings import EvaluateSuite
from prospect.benchmarks.journal import Add
from prospect.evaluation.matching import match_turns
from prospect.evaluation.settings import MatcherMode

_DATASET = "ego4d"
"""Has the widest published window."""
_POOL = 200
_DIMENSION = 384
_JITTER = 6
"""Frames by which an utterance of the system may lie beside its reference."""
_OTHER_WORDS = 0.3
"""Share of utterances that say something else."""
Turns = dict[int, str]


class _Table:
    """Random unit vectors for the sentences `0`, `1`, ...: what is measured has no encoder in it."""

    def __init__(self, seed: int) -> None:
        drawn = np.random.default_rng(seed).standard_normal((_POOL, _DIMENSION)).astype(np.float32)
        self._vectors = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._vectors[[int(text) for text in texts]]


def measure_matcher(config: BenchmarkConfig, suite: EvaluateSuite, add: Add) -> None:
    """A row for each form: utterances of the system a second, the ratio to `compat`, milliseconds a video."""
    encoder = _Table(suite.seed)
    source = random.Random(suite.seed)
    videos = [_draw_video(source, suite) for _ in range(suite.videos)]
    seconds: dict[MatcherMode, list[float]] = {mode: [] for mode in get_args(MatcherMode)}
    for _ in range(suite.rounds):
        for generated, reference in videos:
            for mode, took in seconds.items():
                settings = config.evaluation.matching.model_copy(update={"mode": mode})
                began = time.perf_counter()
                match_turns(generated, reference, suite.frames, encoder, settings, _DATASET)
                took.append(time.perf_counter() - began)
    turns = sum(len(generated) for generated, _ in videos) / suite.videos
    for mode, took in seconds.items():
        add({
            "form": mode,
            "utterances/s": turns / median(took),
            "ratio": median(seconds["compat"]) / median(took),
            "p50 ms": 1000 * float(np.quantile(took, 0.5)),
            "p95 ms": 1000 * float(np.quantile(took, 0.95)),
        })  # fmt: skip


def _draw_video(source: random.Random, suite: EvaluateSuite) -> tuple[Turns, Turns]:
    """What the system said and what the reference says, by frame."""
    frames = source.sample(range(suite.frames), min(suite.utterances, suite.frames))
    reference = {frame: str(source.randrange(_POOL)) for frame in frames}
    generated = {}
    for frame, text in reference.items():
        moved = min(max(frame + source.randint(-_JITTER, _JITTER), 0), suite.frames - 1)
        generated[moved] = str(source.randrange(_POOL)) if source.random() < _OTHER_WORDS else text
    return generated, reference
