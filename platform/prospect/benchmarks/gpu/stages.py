"""What each stage measures. A stage hands over rows of JSON, each as soon as it is measured."""

import math
from collections.abc import Callable

import numpy as np
import torch

from prospect.benchmarks.engine.adapter import EngineSystem
from prospect.benchmarks.engine.bounds import bound_seconds, copy_bandwidth, weight_bytes, weight_floor_seconds
from prospect.benchmarks.engine.load import Workload, saturated
from prospect.benchmarks.engine.measure import MIB, saturated_cell, to_json
from prospect.benchmarks.gpu.bench import Bench
from prospect.benchmarks.gpu.cuda_tests import run_cuda_tests
from prospect.benchmarks.gpu.machine import inventory
from prospect.benchmarks.gpu.paced import pace
from prospect.benchmarks.gpu.settings import GpuSuite, Stage
from prospect.benchmarks.journal import Add, StageResult
from prospect.errors import OutOfPagesError, SessionError
from prospect.messages import first_line
from prospect.percentiles import Percentiles
from prospect.streaming.attention.select import BACKENDS, deviation
from prospect.streaming.settings import AttentionName, StreamingSettings

_SATURATED_S = 6.0
"""Seconds of a measurement in saturation; one that keeps up with 2 frames/s goes on until all frames are decided."""


def _missing(bench: Bench, add: Add) -> None:
    for row in inventory():
        add(row)


def _tests(bench: Bench, add: Add) -> None:
    for row in run_cuda_tests(bench.seconds_left()):
        add(row)


def _floor(bench: Bench, add: Add) -> None:
    """A single session's step with one frame, over the time in which the layers' weights can be read once."""
    suite, model = bench.suite, bench.loaded.model
    bandwidth = copy_bandwidth(model.device, suite.copied_mib * MIB)
    floor_ms = 1000 * weight_bytes(model) / bandwidth
    sheet = weight_floor_seconds(model)
    workload = Workload(suite.engine(speak_rate=0.0), 1, suite.context, suite.floor_frames)
    system = EngineSystem(bench.loaded, workload, bench.streaming)
    system.fill(workload.starts)
    record = saturated(system, workload, range(suite.floor_frames), _SATURATED_S)
    step = Percentiles.of(np.array(record.steps))
    row = {
        "weight_bytes": weight_bytes(model),
        "bandwidth": bandwidth,
        "floor_ms": floor_ms,
        "data_sheet_floor_ms": sheet and 1000 * sheet,
        "step_ms": step._asdict(),
        "times_the_floor": step.p50 / floor_ms,
        "attention": bench.streaming.attention,
        "page_tokens": bench.streaming.page_tokens,
    }
    add(row)


def _attention(bench: Bench, add: Add) -> None:
    """Frames of full sessions by each backend; `varlen` with captured graphs and without."""
    ways: list[tuple[AttentionName, bool]] = [("sdpa", False)]
    if bench.suite.device == "cuda":
        ways = [("varlen", True), ("varlen", False), ("flex", False)]
    for name, graphs in ways:
        chosen = bench.streaming if name == bench.streaming.attention else bench.configured
        rows = chosen.graph_rows if graphs else ()
        settings = chosen.model_copy(update={"attention": name, "graph_rows": rows})
        way = {"backend": name, "graphs": graphs, "page_tokens": settings.page_tokens}
        try:
            add(way | _frames_by(bench, settings))
        except Exception as error:  # any: a missing compiler, a kernel of another device
            add(way | {"error": first_line(error)})


def _frames_by(bench: Bench, settings: StreamingSettings) -> StageResult:
    suite, sessions = bench.suite, bench.suite.attention_sessions
    wrong = deviation(BACKENDS[settings.attention], bench.small_pool(settings))
    frames = range(_frames_of(suite, sessions))
    workload = Workload(suite.engine(speak_rate=0.0), sessions, suite.context, len(frames))
    system = EngineSystem(bench.loaded, workload, settings)
    system.fill(workload.starts)
    record = saturated(system, workload, frames, _SATURATED_S)
    return {
        "sessions": sessions,
        "deviation": wrong,
        "frames_per_s": record.decided / record.seconds,
        "step_mean_ms": 1000 * float(np.mean(record.steps)),
        "latency": Percentiles.of(record.latencies()[0])._asdict(),
    }


def _saturation(bench: Bench, add: Add) -> None:
    """Sessions whose next frame waits as soon as the last one is decided."""
    suite = bench.suite
    for sessions in suite.saturated:
        frames = _frames_of(suite, sessions)
        engine = suite.engine(saturated_frames=frames, seconds=_SATURATED_S)
        workload = Workload(engine, sessions, suite.context, frames)
        bound = bound_seconds(bench.loaded.model, sessions, suite.context)
        try:
            _, cell = saturated_cell("engine", bench.loaded, bench.streaming, workload, bound)
        except (OutOfPagesError, SessionError) as error:
            add({"sessions": sessions, "error": first_line(error)})
            continue
        add(to_json(cell))


def _lora(bench: Bench, add: Add) -> None:
    """A LoRA step by `suite=train`'s measurement on a GPU."""
    bench.release()
    from prospect.benchmarks.settings import TrainSuite
    from prospect.benchmarks.train.gpu import measure_geometry

    suite = bench.suite
    train = TrainSuite(
        gpu_tokens=suite.lora_tokens,
        gpu_steps=suite.lora_steps,
        gpu_cap=suite.lora_cap,
        vision_dim=suite.vision_dim,
    )
    for result in measure_geometry(train, suite.base, suite.device):
        add(to_json(result))


def _smolvlm(bench: Bench, add: Add) -> None:
    """Stage `floor` with the other backbone."""
    bench.release()
    suite = bench.suite.model_copy(update={"base": bench.suite.second_base})
    other = Bench(suite, bench.configured, bench.folder)
    other.ends = bench.ends
    _floor(other, add)
    other.release()


def _siglip(bench: Bench, add: Add) -> None:
    """Images/s of the bare encoder with pictures in memory."""
    bench.release()
    from prospect.benchmarks.embed.bare_encoder import SIGLIP_ON_A_GPU, images_per_second
    from prospect.vision.encoder import FrameEncoder
    from prospect.vision.settings import VisionSettings
    from prospect.vision.towers import build_tower
    from prospect.vision.weights import Weights

    suite = bench.suite
    with torch.device(suite.device):  # a CPU takes 11 s to draw the weights
        tower = build_tower(VisionSettings(model=suite.encoder), Weights("random", seed=0))
    for compiled in suite.encoder_compiled:
        settings = SIGLIP_ON_A_GPU.model_copy(
            update={
                "model": suite.encoder,
                "image_size": suite.encoder_size,
                "batch_size": suite.encoder_batch,
                "dtype": suite.dtype,
                "device": suite.device,
                "compile": compiled,
            }
        )
        speed = images_per_second(FrameEncoder(settings, tower, "random"), suite.encoder_seconds, warm_up=2)
        add({"model": suite.encoder, "compiled": compiled, "batch": suite.encoder_batch, "images_per_s": speed})


def _frames_of(suite: GpuSuite, sessions: int) -> int:
    """Frames of each session, so that together they are as many decisions as percentiles need."""
    return math.ceil(max(suite.decisions / sessions, min(40, suite.decisions)))


STAGES: dict[Stage, Callable[[Bench, Add], None]] = {
    "missing": _missing,
    "tests": _tests,
    "floor": _floor,
    "attention": _attention,
    "saturation": _saturation,
    "paced": pace,
    "lora": _lora,
    "smolvlm": _smolvlm,
    "siglip": _siglip,
}
