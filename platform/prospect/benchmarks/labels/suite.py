"""The aligner against gold and against simpler methods. Run: python jobs/benchmark.py suite=labels.

Weights are fitted on one half of GoalStep's videos and every score is taken on the other.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from prospect.benchmarks.config import BenchmarkConfig
from prospect.benchmarks.labels.fit import Example, SpreadCalibration, calibration, fit_outside, fit_weights
from prospect.benchmarks.labels.gold import Gold, GoldVideo, bookkept, egoexolearn_lines, goalstep, holoassist_turns
from prospect.benchmarks.labels.limits import limits, out_of_order
from prospect.benchmarks.labels.methods import METHODS
from prospect.benchmarks.labels.scores import Summary, score, summarize
from prospect.benchmarks.settings import LabelsSuite
from prospect.data.labels.aligner import evidence
from prospect.data.labels.spans import block_ends
from prospect.files import open_filesystem, write_file
from prospect.similarity import SentenceSimilarity

UTTERANCES = "HoloAssist, utterances"
"""What people say at the ends of a task is like bookkeeping and yet part of it: half of it serves to fit."""


def run(config: BenchmarkConfig) -> dict[str, Any]:
    """Prints the tables, writes `benchmarks/labels.json` below the storage root, and returns what it wrote.

    Raises:
        DataError: the gold is not there.
        ConfigError: the encoder is not there.
    """
    suite = config.suite
    assert isinstance(suite, LabelsSuite)
    result = measure(suite, Console())
    filesystem, root = open_filesystem(config.storage.root)
    write_file(filesystem, f"{root}/benchmarks/labels.json", json.dumps(result, indent=2).encode())
    return result


def measure(suite: LabelsSuite, console: Console) -> dict[str, Any]:
    """Measure on GoalStep, and with the same weights on two other data sets."""
    encoder = SentenceSimilarity(suite.similarity, "suite.similarity")

    def examples(videos: Sequence[GoldVideo]) -> list[Example]:
        return [(each, evidence(each.steps, each.blocks, encoder, suite.aligner.spans)) for each in videos]

    gold = goalstep(suite.path)
    tuning = examples([video for video in gold.videos if video.tuning])
    report = examples([video for video in gold.videos if not video.tuning])
    result: dict[str, Any] = {"suite": suite.model_dump(mode="json"), "goalstep": _counts(gold)}
    halves = {"tuning": tuning, "report": report}
    result["fitted"] = dict(zip(("similarity_weight", "pause_weight"), fit_weights(tuning), strict=True))
    for name, half in dict(halves).items():
        halves[f"{name}, bookkept"] = examples(bookkept(Gold(tuple(video for video, _ in half), {})).videos)
    transfer = {name: (other, examples(other.videos)) for name, other in _transfer(suite).items()}
    speech = [(video, found) for video, found in transfer[UTTERANCES][1] if video.tuning]
    outside = fit_outside(suite.aligner, tuning, halves["tuning, bookkept"], speech)
    result["fitted"] |= dict(zip(("outside_price", "outside_weight"), outside, strict=True))
    for name, half in halves.items():
        rows = compare(half, suite)
        result["goalstep"][name] = {method: asdict(row) for method, row in rows.items()}
        console.print(_table(f"GoalStep, {name} half: {len(half)} videos", rows))
    sure = calibration(report, suite.aligner)
    result["calibration"] = asdict(sure)
    console.print(_reliability(sure))
    result["limits"] = limits(report, suite.aligner) | {
        f"CaptainCook4D, {name}": value for name, value in out_of_order(suite.path).items()
    }
    for name, (other, found) in transfer.items():
        rows = compare(found, suite)
        result[name] = _counts(other) | {method: asdict(row) for method, row in rows.items()}
        console.print(_table(f"{name}: {len(other.videos)} videos, weights of GoalStep", rows))
    console.print(_listing("What limits it, report half", result["limits"]))
    console.print(_listing("Weights fitted on the tuning half", result["fitted"]))
    return result


def compare(examples: Sequence[Example], suite: LabelsSuite) -> dict[str, Summary]:
    """Every method on the same videos; the last row assigns as the annotators did."""
    ends = [block_ends(video.blocks, suite.aligner.spans) for video, _ in examples]
    rows = {}
    for name, method in METHODS.items():
        paths = [method(found, suite.aligner) for _, found in examples]
        scores = [score(video, path, end) for (video, _), path, end in zip(examples, paths, ends, strict=True)]
        rows[name] = summarize(scores, suite.bootstrap_samples, suite.seed)
    golds = [np.where(np.array(video.gold) == len(video.steps), -1, video.gold) for video, _ in examples]
    perfect = [score(video, gold, end) for (video, _), gold, end in zip(examples, golds, ends, strict=True)]
    return rows | {"gold assignment": summarize(perfect, suite.bootstrap_samples, suite.seed)}


def _transfer(suite: LabelsSuite) -> dict[str, Gold]:
    return {
        UTTERANCES: holoassist_turns(suite.path, suite.transfer_videos),
        "EgoExoLearn, sentences without times": egoexolearn_lines(suite.path, suite.transfer_videos),
    }


def _counts(gold: Gold) -> dict[str, Any]:
    return {
        "videos": len(gold.videos),
        "steps": sum(len(video.steps) for video in gold.videos),
        "blocks": sum(len(video.blocks) for video in gold.videos),
        "videos_out_of_order": sum(not video.in_order for video in gold.videos),
        "excluded": dict(gold.excluded),
    }


def _table(title: str, rows: Mapping[str, Summary]) -> Table:
    table = Table(title=title, caption="95 % intervals over videos; boundary: seconds off a step's start")
    for name in ("method", "block accuracy", "all blocks", "span IoU", "boundary mean, s", "median, s", "no block"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for name, row in rows.items():
        seconds = [
            f"{each.value:.1f} [{each.low:.1f}, {each.high:.1f}]" for each in (row.offset_mean, row.offset_median)
        ]
        table.add_row(
            name, str(row.accuracy), f"{row.block_accuracy.value:.3f}", str(row.iou), *seconds, f"{row.missing:.1%}"
        )
    return table


def _reliability(found: SpreadCalibration) -> Table:
    title = f"Confidence of steps, report half: expected calibration error {found.error:.3f}"
    table = Table("confidence", "steps", "mean", "share of blocks right", title=title)
    for each in found.bins:
        table.add_row(f"{each.low:.2f}-{each.high:.2f}", str(each.steps), f"{each.confidence:.2f}", f"{each.right:.2f}")
    return table


def _listing(title: str, values: Mapping[str, float]) -> Table:
    table = Table("what", "value", title=title)
    for name, value in values.items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    return table
