"""Baselines of the embedding benchmark: bare encoding and decoding loops, and the peers' pipelines."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, cast

import av
import numpy as np
import ray
import torch
from PIL import Image
from ray.data import ActorPoolStrategy

from prospect.benchmarks.embed.bare_encoder import images_per_second, rate
from prospect.dialogue.timeline import FPS
from prospect.vision.encoder import FrameEncoder, load_encoder
from prospect.vision.settings import VisionSettings
from prospect.vision.stages import DecodeVideo

WIDTH, HEIGHT, RATE = 640, 360, 30

_encoder: FrameEncoder | None = None
"""The encoder of a worker process, loaded before the measurement."""


def draw_video(path: Path, seconds: int) -> None:
    """Write a synthetic video: a window moving over soft blobs, 640x360 H.264 at 30 pictures/s."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (90, 160, 3), np.uint8)
    scene = np.asarray(Image.fromarray(coarse).resize((2 * WIDTH, 2 * HEIGHT), Image.Resampling.BICUBIC))
    partial = path.with_suffix(".partial.mp4")
    with av.open(str(partial), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(seconds * RATE):
            x = int(WIDTH / 2 * (1 + np.sin(number / 97)))
            y = int(HEIGHT / 2 * (1 + np.sin(number / 61)))
            picture = np.ascontiguousarray(scene[y : y + HEIGHT, x : x + WIDTH])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    partial.rename(path)


class BareLoops:
    """One worker process for each core, all of which either encode frames in memory or decode."""

    def __init__(self, settings: VisionSettings, cores: int) -> None:
        self._settings = settings
        context = get_context("spawn")
        self._pools = [ProcessPoolExecutor(1, context) for _ in range(cores)]  # one each, so that none serves two
        self._each(_load, settings)

    def __enter__(self) -> "BareLoops":
        return self

    def __exit__(self, *_: object) -> None:
        for pool in self._pools:
            pool.shutdown()

    def encoder(self, seconds: float, processes: int | None = None, threads: int = 1) -> float:
        """Frames/s of `processes` (default: one a core) encoding frames in memory."""
        return sum(self._each(_encode_loop, threads, seconds, processes=processes))

    def decoder(self, path: Path, seconds: float, processes: int | None = None) -> float:
        """Sampled frames/s of `processes` (default: one a core) decoding and resizing."""
        return sum(self._each(_decode_loop, self._settings, str(path), seconds, processes=processes))

    def _each(self, function: Callable[..., float], *arguments: Any, processes: int | None = None) -> list[float]:
        start = time.time() + 0.2
        futures = [pool.submit(_at, start, function, *arguments) for pool in self._pools[:processes]]
        return [future.result() for future in futures]


def _at(start: float, function: Callable[..., float], *arguments: Any) -> float:
    time.sleep(max(0.0, start - time.time()))
    return function(*arguments)


def _load(settings: VisionSettings) -> float:
    global _encoder
    _encoder = load_encoder(settings, "cpu")
    return 0.0


def _encode_loop(threads: int, seconds: float) -> float:
    assert _encoder is not None
    torch.set_num_threads(threads)
    return images_per_second(_encoder, seconds)


def _decode_loop(settings: VisionSettings, path: str, seconds: float) -> float:
    decode = _decoder(settings)
    return rate((len(batch) for video in cycle([path]) for batch in decode.batches(video)), seconds)


def _decoder(settings: VisionSettings) -> DecodeVideo:
    return DecodeVideo(settings.image_size, settings.crop, settings.batch_size, "", "")


class Rate(NamedTuple):
    """Throughput of one pipeline from video files to embeddings, frames/s."""

    steady: float
    """After the start."""
    with_start: float
    """From the call to the last embedding, with the loading of encoders."""


def one_after_another(paths: list[Path], settings: VisionSettings, cores: int) -> Rate:
    """The peers' pipeline with our sampler: one process that alternates between decoding and encoding on all cores."""
    called = time.perf_counter()
    encoder, decode = load_encoder(settings, "cpu"), _decoder(settings)
    torch.set_num_threads(cores)
    began, frames = time.perf_counter(), 0
    for path in paths:
        for batch in decode.batches(str(path)):
            frames += len(encoder.encode(batch))
    ended = time.perf_counter()
    return Rate(frames / (ended - began), frames / (ended - called))


def every_frame(paths: list[Path], settings: VisionSettings, encoders: int) -> Rate:
    """A Ray Data job on `ray.data.read_videos`: one row for each picture, most of them dropped later."""
    called = time.time()
    rows = [{"path": str(path), "size": settings.image_size} for path in paths]
    dataset = (
        ray.data.from_items(cast(Any, rows), override_num_blocks=len(rows))
        .flat_map(_all_pictures, num_cpus=0.5)
        .filter(_is_sampled, num_cpus=0.5)
        .map_batches(
            cast(Any, _Encode),
            batch_size=settings.batch_size,
            fn_constructor_args=(settings,),
            compute=ActorPoolStrategy(size=encoders),
            num_cpus=0.5,
        )
    )
    dataset.context.enable_progress_bars = False
    seconds = sorted(row["encoded_at"] for row in dataset.iter_rows())
    return Rate(steady((1, second) for second in seconds), len(seconds) / (time.time() - called))


def steady(arrivals: Iterable[tuple[int, float]]) -> float:
    """Frames/s between 20 and 90 % of all frames, where buffers are equally full.

    Args:
        arrivals: frames, and the second at which they came.
    """
    counts, times = zip(*arrivals, strict=True)
    total = np.cumsum(counts)
    first, last = np.searchsorted(total, [0.2 * total[-1], 0.9 * total[-1]])
    return float((total[last] - total[first]) / (times[last] - times[first]))


def _all_pictures(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    with av.open(row["path"]) as container:
        for number, frame in enumerate(container.decode(video=0)):
            picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
            resized = picture.resize((row["size"], row["size"]), Image.Resampling.BICUBIC)
            yield {"number": number, "picture": np.asarray(resized)}


def _is_sampled(row: dict[str, Any]) -> bool:
    step = RATE // int(FPS)
    return bool(row["number"] % step == step - 1)


class _Encode:
    """The same encoder, in an actor."""

    def __init__(self, settings: VisionSettings) -> None:
        torch.set_num_threads(1)
        self._encoder = load_encoder(settings, "cpu")

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        embedding = self._encoder.encode(np.ascontiguousarray(batch["picture"]))
        return {"embedding": embedding.astype(np.float32), "encoded_at": np.full(len(embedding), time.time())}
