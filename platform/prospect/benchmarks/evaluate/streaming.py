"""Videos a second: groups of dialogues through the engine against one video at a time, and the latency-aware mode.

Every way decides the same frames of the same planted model, which speaks at the same frames. The peers' way is a loop
over one video after another with a DynamicCache, whose first context costs it nothing here.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.table import Table

from prospect.benchmarks.engine.adapter import background, planned_engine
from prospect.benchmarks.engine.load import Workload
from prospect.benchmarks.engine.model import planted_model
from prospect.benchmarks.engine.peers import LoopSystem
from prospect.benchmarks.engine.settings import EngineSuite
from prospect.benchmarks.evaluate.settings import StreamingStage
from prospect.benchmarks.journal import StageResult
from prospect.devices import pick_device
from prospect.dialogue.schema import Dialogue
from prospect.dialogue.timeline import FPS, place
from prospect.errors import ProspectError
from prospect.evaluation.decision_cache import SESSIONS_PER_GROUP
from prospect.evaluation.pace_record import PacedRun
from prospect.evaluation.paced import stream_paced
from prospect.evaluation.records import Placed, VideoDecisions
from prospect.evaluation.settings import PacedSettings
from prospect.evaluation.stream import stream_dialogues
from prospect.machine import describe_machine
from prospect.streaming.settings import StreamingSettings

LOOP, ALONE, GROUPS = "one video at a time, DynamicCache", "one video at a time", "groups"
"""Names of the ways; the first is the peers'."""

Way = Callable[[], tuple[int, StageResult]]
"""Streams all videos; returns the number of utterances, and what else there is to say."""


def measure_streaming(stage: StreamingStage, streaming: StreamingSettings, cache: Path) -> list[StageResult]:
    """Measure every way in turns; return a row for each, the first with machine and sizes.

    Rows: `way`, `seconds` of the fastest round, `videos_per_s`, `frames_per_s`, `of_loop` (times the loop's videos/s)
    and, of the latency-aware mode, `cost` (times the seconds of groups) and what `PacedRun.summary` says.

    Args:
        stage: sizes and rates.
        streaming: settings of the engine.
        cache: of the storage root, for the base's geometry.

    Raises:
        ProspectError: the ways do not speak equally often.
    """
    torch.set_num_threads(stage.num_threads or torch.get_num_threads())
    device = str(pick_device(stage.device))
    ways = _Videos(stage, streaming, device, cache).ways()
    for way in ways.values():
        way()  # what is spent once
    seconds: dict[str, float] = {}
    told: dict[str, tuple[int, StageResult]] = {}
    for _ in range(stage.rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            found = way()
            took = time.perf_counter() - began
            if took < seconds.get(name, float("inf")):
                seconds[name], told[name] = took, found
    if len({utterances for utterances, _ in told.values()}) > 1:
        spoken = {name: utterances for name, (utterances, _) in told.items()}
        raise ProspectError(f"benchmark: the ways spoke unequally often: {spoken}")
    machine = {"machine": describe_machine(device), "stage": stage.model_dump(mode="json")}
    return [machine, *(_row(name, seconds, told[name][1], stage) for name in ways)]


def _row(name: str, seconds: dict[str, float], more: StageResult, stage: StreamingStage) -> StageResult:
    took = seconds[name]
    speed = {"seconds": took, "videos_per_s": stage.videos / took, "frames_per_s": stage.videos * stage.frames / took}
    cost = {"cost": took / seconds[GROUPS]} if more else {}
    return {"way": name, **speed, "of_loop": seconds[LOOP] / took, **cost, **more}


class _Videos:
    """Videos of one length, and the ways to stream them."""

    def __init__(self, stage: StreamingStage, streaming: StreamingSettings, device: str, cache: Path) -> None:
        names = ("base", "dtype", "vision_dim", "speak_rate", "utterance_tokens", "seed")
        suite = EngineSuite(**{name: getattr(stage, name) for name in names})
        self._stage, self._streaming = stage, streaming
        self._loaded = planted_model(suite, device, cache)
        self._workload = Workload(suite, stage.videos, stage.context, stage.frames)
        self._frames = [
            np.stack([self._workload.features(video, frame) for frame in range(stage.frames)])
            for video in range(stage.videos)
        ]
        rng = np.random.default_rng(stage.seed)
        layout = planned_engine(self._loaded, self._workload, streaming, 1).context.layout
        self._placed = [
            self._dialogue(video, background(rng, self._loaded.vocabulary, layout, self._workload))
            for video in range(stage.videos)
        ]

    def ways(self) -> dict[str, Way]:
        loop = LoopSystem(self._loaded, self._workload)
        plain: dict[str, Way] = {
            LOOP: lambda: self._loop(loop),
            ALONE: self._grouped(1),
            GROUPS: self._grouped(SESSIONS_PER_GROUP),
        }
        return plain | {f"latency-aware, {speed:g}x": self._live(speed) for speed in self._stage.speeds}

    def _dialogue(self, video: int, knowledge: str) -> Placed:
        name, duration = str(video), self._stage.frames / FPS
        dialogue = Dialogue(
            dataset="benchmark", video_id=name, dialogue_id=name, knowledge=knowledge, duration=duration
        )
        return dialogue, place(dialogue, self._stage.frames)

    def _read(self, dialogue: Dialogue, start: int, stop: int) -> np.ndarray:
        return self._frames[int(dialogue.video_id)][start:stop]

    def _loop(self, loop: LoopSystem) -> tuple[int, StageResult]:
        utterances = 0
        for video in range(self._stage.videos):
            loop.fill([self._workload.rebuilt])
            for frame, features in enumerate(self._frames[video]):
                loop.push(0, frame, features, bool(self._workload.speaks[video, frame]))
            while loop.busy():
                utterances += sum(happening.spoke for happening in loop.step())
        return utterances, {}

    def _grouped(self, size: int) -> Way:
        engine = planned_engine(self._loaded, self._workload, self._streaming, size)

        def stream() -> tuple[int, StageResult]:
            videos: list[VideoDecisions] = []
            for first in range(0, len(self._placed), size):
                engine.forget_prefixes()
                videos += stream_dialogues(engine, self._placed[first : first + size], self._read)
            return _count(videos), {}

        return stream

    def _live(self, speed: float) -> Way:
        engine = planned_engine(self._loaded, self._workload, self._streaming, SESSIONS_PER_GROUP)
        # Nothing is dropped, so that this way decides as many frames as the others.
        all_wait = {"max_waiting_frames": self._stage.frames, "max_delay_s": 1e9}
        settings = PacedSettings(speed=speed, sessions=SESSIONS_PER_GROUP, **all_wait)

        def stream() -> tuple[int, StageResult]:
            engine.forget_prefixes()
            run: PacedRun = stream_paced(engine, self._placed, self._read, settings)
            summary = run.summary()
            del summary["machine"]
            return sum(len(video.utterances) for video in run.known()), summary

        return stream


def _count(videos: Sequence[VideoDecisions]) -> int:
    return sum(len(video.utterances) for video in videos)


def table(rows: Sequence[StageResult]) -> Table:
    """The rows of `measure_streaming`, for a terminal."""
    head, *ways = rows
    stage, machine = head["stage"], head["machine"]
    title = (
        f"{stage['videos']} videos of {stage['frames']} frames, contexts of {stage['context']} tokens; "
        f"{stage['base']}, {stage['dtype']}, random weights; {machine['device']}, "
        f"{machine['threads']} threads, load average {machine['load_average']:.1f}"
    )
    found = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    found.add_column("way")
    for name in ("videos/s", "frames/s", "of the loop's", "cost", "step p50/p95/p99, ms", "frame p50/p95/p99, ms", "n"):
        found.add_column(name, justify="right")
    for row in ways:
        speed = (f"{row['videos_per_s']:.2f}", f"{row['frames_per_s']:.0f}", f"{row['of_loop']:.1f}x")
        found.add_row(row["way"], *speed, *_paced_cells(row))
    return found


def _paced_cells(row: dict[str, Any]) -> tuple[str, ...]:
    if "cost" not in row:
        return ("-",) * 4
    step, latency = row["step_ms"], row["latency_ms"]
    three = ("/".join(f"{times[name]:.1f}" for name in ("p50", "p95", "p99")) for times in (step, latency))
    return (f"{row['cost']:.2f}x", *three, f"{latency['number']:,}")
