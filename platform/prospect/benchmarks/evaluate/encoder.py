"""The sentence encoder: one sentence at a time, many in a call, and vectors from disk."""

import random
import shutil
import time
from pathlib import Path
from statistics import median

import numpy as np

from prospect.benchmarks.config import BenchmarkConfig
from prospect.benchmarks.evaluate.settings import EvaluateSuite
from prospect.benchmarks.journal import Add
from prospect.similarity import SentenceSimilarity

_WORDS = (
    "the",
    "a",
    "left",
    "then",
    "now",
    "pour",
    "water",
    "into",
    "kettle",
    "wheel",
    "attach",
    "tighten",
    "onion",
    "chop",
)
_WAYS = ("one at a time", "all in a call", "from disk, opening included")


def measure_encoder(config: BenchmarkConfig, suite: EvaluateSuite, add: Add) -> None:
    """A row for each way: sentences/s, the ratio to the first, milliseconds of a single sentence.

    `largest difference` is that of any element of a vector from the first way's.
    """
    settings, cache = config.evaluation.similarity, Path(config.storage.root) / "benchmarks" / "evaluate" / "vectors"
    shutil.rmtree(cache, ignore_errors=True)
    alone, together = SentenceSimilarity(settings), SentenceSimilarity(settings, cache=cache)
    for encoder in (alone, together):
        encoder.embed(draw_sentences(8, suite.seed - 1))  # warm
    seconds: dict[str, list[float]] = {way: [] for way in _WAYS}
    single: list[float] = []
    difference = 0.0
    for number in range(suite.rounds):
        texts = draw_sentences(suite.sentences, suite.seed + number)
        clock = [time.perf_counter()]
        for text in texts:
            alone.embed([text])
            clock.append(time.perf_counter())
        vectors = together.embed(texts)
        clock.append(time.perf_counter())
        kept = SentenceSimilarity(settings, cache=cache).embed(texts)
        clock.append(time.perf_counter())
        for way, took in zip(_WAYS, (clock[-3] - clock[0], clock[-2] - clock[-3], clock[-1] - clock[-2]), strict=True):
            seconds[way].append(took)
        single += np.diff(clock[:-2]).tolist()
        assert np.array_equal(vectors, kept), "vectors on disk are other ones"
        difference = max(difference, float(np.abs(vectors - alone.embed(texts)).max()))
    for way in _WAYS:
        first = way == _WAYS[0]
        add({
            "encoder": alone.identity["name"],
            "way": way,
            "sentences/s": suite.sentences / median(seconds[way]),
            "ratio": median(seconds[_WAYS[0]]) / median(seconds[way]),
            "p50 ms": 1000 * float(np.quantile(single, 0.5)) if first else None,
            "p95 ms": 1000 * float(np.quantile(single, 0.95)) if first else None,
            "largest difference": 0.0 if first else difference,
        })  # fmt: skip


def draw_sentences(count: int, seed: int) -> list[str]:
    """Distinct sentences of 4 to 40 words, as long as utterances are."""
    source = random.Random(seed)
    return [f"{' '.join(source.choices(_WORDS, k=source.randint(3, 39)))} {seed}x{n}." for n in range(count)]
