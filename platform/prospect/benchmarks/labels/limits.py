"""Limits of the aligner's accuracy: where its errors lie, and what even an oracle would miss."""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median

import numpy as np

from prospect.benchmarks.labels.fit import Example
from prospect.benchmarks.labels.gold import GoldVideo, read
from prospect.benchmarks.labels.methods import Assignment, aligner, text_only
from prospect.data.labels.aligner import AlignerSettings
from prospect.data.labels.chain import Floats

_UNSEEN = 1e-3
"""Probability of a step with which the oracle never saw a text."""


def limits(examples: Sequence[Example], settings: AlignerSettings) -> dict[str, float]:
    """Shares and accuracies by what each is about; accuracies are means over blocks."""
    found: dict[str, list[float]] = defaultdict(list)
    for video, evidence in examples:
        path = aligner(evidence, settings)
        right = path == video.gold
        named_alike = len({name.lower() for name in video.steps}) < len(video.steps)
        found[f"accuracy, videos {'with' if named_alike else 'without'} repeated step names"] += right.tolist()
        for good, ambiguous in zip(right.tolist(), _ambiguous(video), strict=True):
            found[f"accuracy, texts that occur in {'several steps' if ambiguous else 'one step only'}"].append(good)
            found["share of texts that occur in several steps"].append(ambiguous)
        found["share of errors at a boundary (first or last block of a step)"] += _edge(video)[~right].tolist()
        found["share of errors by one step"] += (np.abs(path - video.gold) == 1)[~right].tolist()
        found["accuracy, all blocks"] += right.tolist()
        never = np.full(len(video.blocks), -1e3)
        oracle = replace(evidence, similarity=_oracle(video), bookkeeping=never)
        certain = settings.model_copy(update={"similarity_weight": 1.0})
        found["accuracy, oracle of texts"] += (text_only(oracle, certain) == video.gold).tolist()
        found["accuracy, oracle of texts, and pauses"] += (aligner(oracle, certain) == video.gold).tolist()
    return {name: fmean(values) for name, values in sorted(found.items())}


def out_of_order(folder: Path) -> dict[str, float]:
    """CaptainCook4D: how often people leave a recipe's usual order, which a monotone alignment cannot follow.

    The usual order of a recipe is that of the steps' median places over its videos.
    """
    performed: dict[str, list[list[int]]] = defaultdict(list)
    for row in read(folder, "captaincook4d"):
        steps = sorted((step for step in row["steps"] if step["start"] >= 0), key=lambda step: step["start"])
        performed[row["goal"]].append([step["step_id"] for step in steps])
    kept = [
        _longest_rise([order[step] for step in video]) / len(video)
        for videos in performed.values()
        for order in [_usual_places(videos)]
        for video in videos
    ]
    return {
        "videos": len(kept),
        "steps in the usual order": fmean(kept),
        "videos entirely in it": fmean(k == 1 for k in kept),
    }


def _ambiguous(video: GoldVideo) -> list[bool]:
    """For each block, whether its text occurs in several steps."""
    steps: dict[str, set[int]] = defaultdict(set)
    for block, step in zip(video.blocks, video.gold, strict=True):
        steps[block.text.lower()].add(step)
    return [len(steps[block.text.lower()]) > 1 for block in video.blocks]


def _edge(video: GoldVideo) -> Assignment:
    changes = np.diff(video.gold) != 0
    return np.concatenate([[False], changes]) | np.concatenate([changes, [False]])


def _oracle(video: GoldVideo) -> Floats:
    """[B, K] log-probability of each step given the block's exact text, counted in the gold itself."""
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for block, step in zip(video.blocks, video.gold, strict=True):
        counts[block.text.lower()][step] += 1
    rows = [counts[block.text.lower()] for block in video.blocks]
    return np.log([[row[step] / row.total() or _UNSEEN for step in range(len(video.steps))] for row in rows])


def _usual_places(videos: Iterable[Sequence[int]]) -> dict[int, float]:
    places: dict[int, list[float]] = defaultdict(list)
    for video in videos:
        for place, step in enumerate(video):
            places[step].append(place / len(video))
    return {step: median(values) for step, values in places.items()}


def _longest_rise(values: Sequence[float]) -> int:
    """Length of the longest non-decreasing subsequence."""
    tails: list[float] = []
    for value in values:
        at = bisect_right(tails, value)
        tails[at : at + 1] = [value]
    return len(tails)
