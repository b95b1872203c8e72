"""Cutting dialogues into clips: serially as every start of a run once did, by all cores, and from kept cuts."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from prospect.benchmarks.config import BenchmarkConfig
from prospect.cluster.cutting import cut_clips
from prospect.cluster.runtime import connect, disconnect
from prospect.data.clips import Clip
from prospect.data.cuts import make_clips
from prospect.data.prepare import training_texts
from prospect.data.sources import load_dialogues, place_all
from prospect.dialogue.sequence import SequenceBuilder
from prospect.dialogue.vocabulary import Vocabulary
from prospect.machine import describe_machine
from prospect.model.adapters import build_tokenizer


def run(config: BenchmarkConfig) -> dict[str, Any]:
    """Print the table, write `benchmarks/clips.json` below the storage root, and return what it wrote."""
    root = Path(config.storage.root)
    corpus = load_dialogues(config.data)
    placed, _ = place_all(corpus.dialogues, lambda video_id: None)
    texts = training_texts(dialogue for dialogue, _ in placed)
    tokenizer = build_tokenizer(config.model, texts, root / "cache")
    builder = SequenceBuilder(Vocabulary(tokenizer), config.context, config.vision.tokens_per_frame)
    rules, cache = config.training.clips, root / "benchmarks" / "clips"
    shutil.rmtree(cache, ignore_errors=True)
    connect()

    def kept() -> list[Clip]:
        return cut_clips(placed, builder, rules, cache, print)[0]

    ways: dict[str, Callable[[], list[Clip]]] = {
        "one after the other": lambda: make_clips(placed, builder, rules)[0],
        "by all cores, kept": kept,
        "from what was kept": kept,
    }
    seconds, counts = {}, set()
    for way, cut in ways.items():
        began = time.perf_counter()
        counts.add(len(cut()))
        seconds[way] = time.perf_counter() - began
    disconnect()
    assert len(counts) == 1, "the ways differ"
    result = {
        "machine": describe_machine("cpu"),
        "source": str(config.data.path),
        "model": config.model.base,
        "max_seq_len": config.context.max_seq_len,
        "dialogues": len(placed),
        "clips": counts.pop(),
        "seconds": seconds,
    }
    table = Table("way", "seconds", "of the first", title=f"{len(placed):,} dialogues, {result['clips']:,} clips")
    first = next(iter(seconds.values()))
    for way, took in seconds.items():
        table.add_row(way, f"{took:.1f}", f"{took / first:.2f}")
    Console(width=100).print(table)
    target = cache.with_suffix(".json")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=2))
    print(f"benchmark written to {target}")
    return result
