"""suite=engine: live sessions at 2 frames/s, paced and in saturation, against the peers' way and a padded batch.

On a machine that has torch and transformers and neither Ray nor DeepSpeed nor MLflow:

    python -m prospect.benchmarks.engine.suite FOLDER '{"base": "FOLDER_OF_WEIGHTS", "dtype": "bfloat16"}'

A third argument is JSON of the engine's settings.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from prospect.benchmarks.config import BenchmarkConfig
from prospect.benchmarks.engine import report
from prospect.benchmarks.engine.bounds import bound_seconds, weight_floor_seconds
from prospect.benchmarks.engine.load import Workload
from prospect.benchmarks.engine.measure import (
    GIB,
    Cell,
    Minute,
    Paced,
    kv_bytes,
    largest_within,
    measure_cell,
    paced_count,
    soak,
    to_json,
    warm_up,
)
from prospect.benchmarks.engine.model import planted_model
from prospect.benchmarks.engine.settings import EngineSuite
from prospect.devices import pick_device
from prospect.errors import ConfigError, OutOfPagesError
from prospect.machine import describe_machine
from prospect.model.checkpoint import LoadedModel
from prospect.streaming.settings import StreamingSettings


def run(config: BenchmarkConfig) -> dict[str, Any]:
    """Prints tables, writes `benchmarks/engine.json` and pictures below the storage root; returns what it wrote.

    Raises:
        ConfigError: another suite is configured.
        CheckpointError: the base is unknown or cannot be loaded.
    """
    if not isinstance(config.suite, EngineSuite):
        raise ConfigError("`suite` must be engine for this benchmark.", field="suite")
    return measure(config.suite, config.streaming, Path(config.storage.root))


def measure(suite: EngineSuite, streaming: StreamingSettings, root: Path) -> dict[str, Any]:
    """Run the suite without a configuration."""
    console, began = Console(width=150), time.perf_counter()
    torch.set_num_threads(suite.num_threads or torch.get_num_threads())
    device = str(pick_device(suite.device))
    loaded, machine = planted_model(suite, device, root / "cache"), describe_machine(device)
    console.print(report.headline(suite, machine), soft_wrap=True)
    warm_up(loaded, suite, streaming)
    cells: list[Cell] = []
    found: dict[int, tuple[int, dict[int, Paced]]] = {}
    soaks: dict[int, list[Minute]] = {}
    for context in suite.contexts:
        cells += _cells(loaded, suite, streaming, context, console)
        console.print(report.saturation_table(cells, context), report.paced_table(cells, context))
        if suite.search:
            found[context] = largest_within(loaded, suite, streaming, context)
            console.print(report.search_table(found[context][1], context, found[context][0], suite))
        if suite.soak_minutes:
            soaks[context] = []
            for minute in soak(loaded, suite, streaming, context):
                soaks[context].append(minute)
                console.print(f"minute {len(soaks[context])}: {minute.frames_per_s:.1f} frames/s", style="dim")
            console.print(report.soak_table(soaks[context], context, suite.soak_sessions))
    floor = weight_floor_seconds(loaded.model)
    result = {
        "suite": suite.model_dump(mode="json"),
        "streaming": streaming.model_dump(mode="json"),
        "machine": machine,
        "cells": [to_json(cell) for cell in cells],
        "search": {
            context: {"sessions": most, "tried": {number: to_json(paced) for number, paced in tried.items()}}
            for context, (most, tried) in found.items()
        },
        "soak": {context: [to_json(minute) for minute in minutes] for context, minutes in soaks.items()},
        "weight_floor_ms": floor and 1000 * floor,
        "seconds": time.perf_counter() - began,
    }
    _print_floor(console, cells, floor)
    _write(result, cells, soaks, root / "benchmarks", console)
    return result


def _cells(
    loaded: LoadedModel, suite: EngineSuite, streaming: StreamingSettings, context: int, console: Console
) -> Iterator[Cell]:
    for sessions in suite.sessions:
        if (size := sessions * context * kv_bytes(loaded.model) / GIB) > suite.memory_gib:
            console.print(f"{sessions} sessions of {context} tokens left out: {size:.1f} GiB of keys and values")
            continue
        bound = bound_seconds(loaded.model, sessions, context)
        workload = Workload(suite, sessions, context, suite.saturated_frames + paced_count(suite))
        for system in suite.systems:
            try:
                cell = measure_cell(system, loaded, streaming, workload, bound)
            except OutOfPagesError as error:
                console.print(f"{system}, {sessions} x {context} left out: {error}")
                continue
            console.print(f"{system}, {sessions} x {context}: {cell.frames_per_s:.1f} frames/s", style="dim")
            yield cell


def _print_floor(console: Console, cells: list[Cell], floor: float | None) -> None:
    """Compare a single session's step with the time of reading the weights."""
    alone = [cell for cell in cells if cell.system == "engine" and cell.sessions == 1]
    if floor and alone:
        step = min(cell.step_ms.p50 for cell in alone)
        console.print(
            f"one session: {step:.2f} ms a step, {step / 1000 / floor:.2f} times the weights' {1000 * floor:.2f}"
        )


def _write(
    result: dict[str, Any], cells: list[Cell], soaks: dict[int, list[Minute]], folder: Path, console: Console
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "engine.json").write_text(json.dumps(result, indent=2))
    console.print(f"benchmark written to {folder / 'engine.json'}, {result['seconds'] / 60:.1f} minutes")
    try:
        report.plot(cells, soaks, folder / "engine")
    except ModuleNotFoundError as error:
        console.print(f"no pictures: {error.name} is not installed")


def main(folder: str, suite: str = "{}", streaming: str = "{}") -> None:
    measure(EngineSuite(**json.loads(suite)), StreamingSettings(**json.loads(streaming)), Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
