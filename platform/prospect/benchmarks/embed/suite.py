"""The embedding pipeline against its bare parts and the peers' ways, on this machine, in one run."""

import json
import os
import platform
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from prospect.benchmarks.config import BenchmarkConfig
from prospect.benchmarks.embed.bare_encoder import SIGLIP_ON_A_GPU, images_per_second
from prospect.benchmarks.embed.parts import (
    HEIGHT,
    RATE,
    WIDTH,
    BareLoops,
    draw_video,
    every_frame,
    one_after_another,
    steady,
)
from prospect.benchmarks.settings import EmbedSuite
from prospect.cluster.embed import embed_videos
from prospect.cluster.runtime import connect, disconnect
from prospect.devices import has_gpu
from prospect.vision.encoder import load_encoder
from prospect.vision.report import EmbedReport, VideoSource
from prospect.vision.settings import EmbeddingSettings, VisionSettings

SHARED_GOAL, OWN_GOAL = 0.85, 0.90
GPU_GOAL = 885
"""Images/s of SigLIP-SO400M in bfloat16 on one H100."""


@dataclass(frozen=True)
class Round:
    """The pipeline, with its bare parts measured before and after it; frames/s."""

    cores: str
    encoder: float
    decoder: float
    bound: float
    """Throughput under perfect overlap: 1/(1/E + 1/D) on shared cores, min(E, D) on separate ones."""
    pipeline: float
    with_start: float
    seconds: float

    @property
    def share(self) -> float:
        """Throughput of the pipeline as a share of the bound."""
        return self.pipeline / self.bound


def run(config: BenchmarkConfig) -> dict[str, Any]:
    """Prints the table, writes `benchmarks/embed.json` below the storage root, and returns what it wrote."""
    assert isinstance(config.suite, EmbedSuite)
    suite, folder = config.suite, Path(config.storage.root) / "benchmarks" / "embed"
    began = time.monotonic()
    settings = VisionSettings(
        backend=suite.backend,
        model=suite.model,
        weights="random:0",
        image_size=suite.image_size,
        batch_size=suite.batch_size,
    )
    paths = _videos(folder, suite)
    cores = len(os.sched_getaffinity(0))
    with BareLoops(settings, cores) as bare:
        connect()
        one_process = bare.encoder(suite.probe_seconds, 1, cores)
        shared = [_round("shared", bare, paths, settings, suite, folder) for _ in range(suite.rounds)]
        own = [_round("own", bare, paths, settings, suite, folder)] if cores == 2 else []
    rivals = {
        "every frame decoded, resized and dropped": every_frame(paths, settings, cores),
        "one video after another": one_after_another(paths, settings, cores),
    }
    disconnect()
    result = {
        "machine": _machine(cores),
        "suite": suite.model_dump(mode="json"),
        "rounds": [asdict(one) | {"share": one.share} for one in shared + own],
        "encoder_one_process_all_threads": one_process,
        "rivals": {name: rate._asdict() for name, rate in rivals.items()},
        "siglip_so400m_bf16_images_per_s": _on_a_gpu() if has_gpu() else None,
        "seconds": time.monotonic() - began,
    }
    Console(width=120).print(_table(result, shared, own))
    target = folder.with_suffix(".json")
    target.write_text(json.dumps(result, indent=2))
    print(f"benchmark written to {target}")
    return result


def _on_a_gpu() -> float:
    return images_per_second(load_encoder(SIGLIP_ON_A_GPU, "cuda"), 10.0, warm_up=3)


def _videos(folder: Path, suite: EmbedSuite) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    drawn = folder / f"{suite.video_seconds}s.mp4"
    if not drawn.exists():
        draw_video(drawn, suite.video_seconds)
    return [drawn] * suite.num_videos


def _round(
    kind: str, bare: BareLoops, paths: list[Path], settings: VisionSettings, suite: EmbedSuite, folder: Path
) -> Round:
    """Measure E and D, the pipeline, then E and D again: other load on the machine then affects all alike."""
    alone = 1 if kind == "own" else None
    spread = EmbeddingSettings(num_encoders=1, encoder_cpus=1, decoder_cpus=1) if alone else EmbeddingSettings()

    def parts() -> tuple[float, float]:
        encoder = bare.encoder(suite.probe_seconds, alone)
        return encoder, bare.decoder(paths[0], suite.probe_seconds, alone)

    before = parts()
    report, rate = _pipeline(paths, settings, spread, folder / "store")
    encoder, decoder = (mean(pair) for pair in zip(before, parts(), strict=True))
    bound = min(encoder, decoder) if alone else 1 / (1 / encoder + 1 / decoder)
    return Round(kind, encoder, decoder, bound, rate, report.frames / report.seconds, report.seconds)


def _pipeline(
    paths: list[Path], settings: VisionSettings, spread: EmbeddingSettings, root: Path
) -> tuple[EmbedReport, float]:
    """Run the whole job into an empty store; return its frames/s."""
    shutil.rmtree(root, ignore_errors=True)
    arrivals: list[tuple[int, float]] = []
    videos = [VideoSource(f"video{number}", str(path)) for number, path in enumerate(paths)]

    def progress(report: EmbedReport) -> None:
        arrivals.append((report.encoded - sum(count for count, _ in arrivals), report.seconds))

    report = embed_videos(videos, settings, str(root), spread, progress=progress, progress_s=0.0)
    return report, steady(arrivals)


def _machine(cores: int) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if has_gpu() else None
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": cores,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpu": gpu,
        "precision": "float32",
        "load_average": os.getloadavg()[0],
    }


def _table(result: dict[str, Any], shared: list[Round], own: list[Round]) -> Table:
    suite, machine = result["suite"], result["machine"]
    title = (
        f"{suite['model']} at {suite['image_size']} pixels, {machine['precision']}, random weights, batches of "
        f"{suite['batch_size']}; {suite['num_videos']} videos of {suite['video_seconds']} s, {WIDTH}x{HEIGHT} H.264 at "
        f"{RATE} pictures/s; {machine['cores']} cores, load average {machine['load_average']:.1f}; "
        f"{result['seconds']:.0f} s"
    )
    table = Table("what", title=title, title_justify="left")
    table.add_column("frames/s", justify="right")
    table.add_column("", no_wrap=True)
    for rounds, goal in ((shared, SHARED_GOAL), (own, OWN_GOAL)):
        for one in rounds:
            owner = f"{machine['cores']} cores" if one.cores == "shared" else "a core each"
            formula = "1/(1/E + 1/D)" if one.cores == "shared" else "min(E, D)"
            table.add_row(f"E, bare encoder, {owner}", f"{one.encoder:.1f}", "before and after")
            table.add_row(f"D, bare decoder, {owner}", f"{one.decoder:.1f}", "before and after")
            verdict = f"{one.share:.0%} of {formula} = {one.bound:.1f}, goal {goal:.0%}"
            table.add_row("pipeline, steady", f"{one.pipeline:.1f}", verdict)
            table.add_row("pipeline, start included", f"{one.with_start:.1f}", f"{one.seconds:.0f} s")
            table.add_section()
    threads = f"one process, {machine['cores']} threads"
    table.add_row("bare encoder", f"{result['encoder_one_process_all_threads']:.1f}", threads)
    ours = {"steady": median(one.pipeline for one in shared), "with_start": median(one.with_start for one in shared)}
    for name, rates in result["rivals"].items():
        for which, rate in rates.items():
            words = "steady" if which == "steady" else "start included"
            table.add_row(f"{name}, {words}", f"{rate:.1f}", f"the pipeline: {ours[which] / rate:.2f} times this")
    images = result["siglip_so400m_bf16_images_per_s"]
    verdict = f"images/s, goal {GPU_GOAL} on one H100" if images else "there is no GPU"
    table.add_row("SigLIP-SO400M, bf16, bare", f"{images:.0f}" if images else "not measured", verdict)
    return table
