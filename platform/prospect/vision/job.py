"""Embeds a folder of videos with Ray Data: one block a video, a pool of encoders, one file a video.

What is finished is skipped, what is broken is quarantined with its reason, and the rest goes on. Nothing but
the store's own files says what is finished, so a job that dies continues where it was.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import ray
from ray import cloudpickle
from ray.data import ActorPoolStrategy
from rich.table import Table

from prospect.cluster.job import connect
from prospect.data.embeddings import EmbeddingStore
from prospect.dialogue.timeline import FPS
from prospect.errors import DataError, FingerprintError
from prospect.lineage import hash_file
from prospect.vision.encoder import FrameEncoder, VisionSettings, encoder_fingerprint, load_encoder
from prospect.vision.video import sample_frames

WORKER_RETRIES = 1
"""How often a video is tried again whose worker process died (a decoder's crash, no memory).

A worker holds one video at a time, so that its death costs no other video a try."""


@dataclass(frozen=True)
class VideoSource:
    """A video to embed."""

    video_id: str
    path: str
    """A file that every node can read."""


@dataclass(frozen=True)
class Outcome:
    """What became of one video."""

    video_id: str
    status: Literal["done", "skipped", "quarantined"]
    frames: int = 0
    reason: str = ""


@dataclass
class EmbedReport:
    """What became of all videos of a job, and how fast."""

    total: int
    store: str
    fingerprint: str
    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0

    def count(self, status: str) -> int:
        """How many videos ended `done`, `skipped` or `quarantined`."""
        return sum(outcome.status == status for outcome in self.outcomes)

    @property
    def frames(self) -> int:
        """Frames that were encoded now; skipped videos' frames were encoded before."""
        return sum(outcome.frames for outcome in self.outcomes if outcome.status == "done")

    @property
    def hours(self) -> float:
        """Hours of video that were encoded now."""
        return self.frames / FPS / 3600

    @property
    def quarantined(self) -> dict[str, str]:
        """Video id -> reason."""
        return {o.video_id: o.reason for o in self.outcomes if o.status == "quarantined"}

    def progress(self) -> str:
        """One line: videos, frames a second, time left."""
        finished = len(self.outcomes)
        left = self.seconds / finished * (self.total - finished) if finished else 0.0
        rate = self.frames / self.seconds if self.seconds else 0.0
        line = f"embed: {finished}/{self.total} videos, {self.frames} frames, {rate:.0f} frames/s, {left:.0f} s left"
        return f"{line}, {bad} quarantined" if (bad := self.count("quarantined")) else line

    def summary(self) -> dict[str, Any]:
        """The report as plain values."""
        counts = {status: self.count(status) for status in ("done", "skipped", "quarantined")}
        where = {"store": self.store, "fingerprint": self.fingerprint}
        return {**where, **counts, "frames": self.frames, "hours": self.hours, "seconds": self.seconds}

    def table(self) -> Table:
        """The summary, and a row for each quarantined video."""
        table = Table("embed", "", title_justify="left")
        for name, value in self.summary().items():
            table.add_row(name, f"{value:.3g}" if isinstance(value, float) else str(value))
        for video_id, reason in self.quarantined.items():
            table.add_row(f"quarantined {video_id}", reason)
        return table


def print_progress(report: EmbedReport) -> None:
    """Prints the report's line."""
    print(report.progress(), flush=True)


def embed_videos(
    videos: Sequence[VideoSource],
    settings: VisionSettings,
    store_root: str,
    *,
    num_actors: int = 2,
    progress: Callable[[EmbedReport], None] = print_progress,
) -> EmbedReport:
    """Brings the store to where it holds an embedding of every video that can be decoded.

    Args:
        videos: what to embed.
        settings: the encoder.
        store_root: folder or URL that every node can write.
        num_actors: encoders at work at once, where the cluster has room; on GPUs one each.
        progress: called with the growing report after each video.

    Raises:
        DataError: the same video id twice, or no video.
        CheckpointError: the encoder's weights are missing or do not fit.
        FingerprintError: the store was made by another encoder.
    """
    _check(videos)
    report = EmbedReport(len(videos), store_root, encoder_fingerprint(settings))
    store = EmbeddingStore(store_root)
    if store.video_ids():
        store.require(report.fingerprint)
    began = time.monotonic()
    finished = _all_finished(videos, store, report.fingerprint)
    for outcome in finished or _run(videos, settings, store_root, report.fingerprint, num_actors):
        report.outcomes.append(outcome)
        report.seconds = time.monotonic() - began
        progress(report)
    _commit(store, videos, report)
    return report


def _check(videos: Sequence[VideoSource]) -> None:
    if not videos:
        raise DataError("there is no video to embed", field="videos")
    seen: dict[str, str] = {}
    for video in videos:
        if video.video_id in seen:
            raise DataError(
                f"video id {video.video_id!r} stands for two files, {seen[video.video_id]} and {video.path}",
                field="videos",
            )
        seen[video.video_id] = video.path


def _all_finished(videos: Sequence[VideoSource], store: EmbeddingStore, fingerprint: str) -> list[Outcome] | None:
    """Outcomes of a job that has nothing to do, found without starting a worker; None where there is work."""
    stored = set(store.video_ids())
    if not all(video.video_id in stored and Path(video.path).is_file() for video in videos):
        return None
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter's lock
        hashes = pool.map(hash_file, (video.path for video in videos))
        same = all(store.has(v.video_id, source, fingerprint) for v, source in zip(videos, hashes, strict=True))
    return [Outcome(video.video_id, "skipped") for video in videos] if same else None


def _run(
    videos: Sequence[VideoSource], settings: VisionSettings, store_root: str, fingerprint: str, num_actors: int
) -> Iterator[Outcome]:
    """Outcomes as they come; a video whose worker died again and again comes last, as quarantined."""
    connect()
    gpus = int(ray.cluster_resources().get("GPU", 0)) if settings.device != "cpu" else 0
    actors = max(1, min(num_actors, gpus or num_actors, len(videos)))
    rows = [{"video_id": video.video_id, "path": str(Path(video.path).absolute())} for video in videos]
    outcomes = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        cast(Any, _EmbedVideo),
        fn_constructor_args=(settings, store_root, fingerprint),
        compute=ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=1),
        num_cpus=1,
        num_gpus=1 if gpus else 0,
        max_task_retries=WORKER_RETRIES,
    )
    outcomes.context.enable_progress_bars = False
    outcomes.context.max_errored_blocks = -1  # a block is one video, and exceptions come as rows: only deaths are left
    missing = {video.video_id for video in videos}
    for row in outcomes.iter_rows():
        if row["failure"]:
            raise cloudpickle.loads(row["failure"])
        missing.discard(row["video_id"])
        yield cloudpickle.loads(row["outcome"])
    for video in videos:
        if video.video_id in missing:
            yield Outcome(video.video_id, "quarantined", reason=f"the worker that read {video.path} died")


class _EmbedVideo:
    """The actor: one encoder, loaded when the first unfinished video comes."""

    def __init__(self, settings: VisionSettings, store_root: str, fingerprint: str) -> None:
        self._settings = settings
        self._store = EmbeddingStore(store_root)
        self._fingerprint = fingerprint

    def __call__(self, row: dict[str, str]) -> dict[str, Any]:
        """The outcome, or the exception that is to stop the job, pickled for the driver."""
        video_id, path = row["video_id"], row["path"]
        try:
            try:
                outcome = self._embed(video_id, path)
            except DataError as error:
                outcome = Outcome(video_id, "quarantined", reason=str(error))
            return {"video_id": video_id, "outcome": cloudpickle.dumps(outcome), "failure": b""}
        except Exception as error:
            return {"video_id": video_id, "outcome": b"", "failure": cloudpickle.dumps(error)}

    def _embed(self, video_id: str, path: str) -> Outcome:
        try:
            source_hash = hash_file(path)
        except OSError as error:
            raise DataError(f"video {path} cannot be read: {error.strerror}") from error
        if self._store.has(video_id, source_hash, self._fingerprint):
            return Outcome(video_id, "skipped", self._store.num_frames(video_id))
        frames = self._encode(path)
        self._store.write(video_id, frames, fps=FPS, source_hash=source_hash, fingerprint=self._fingerprint)
        return Outcome(video_id, "done", len(frames))

    def _encode(self, path: str) -> np.ndarray:
        pictures = sample_frames(path, size=self._settings.image_size, crop=self._settings.crop)
        batches = []
        while batch := list(islice(pictures, self._settings.batch_size)):
            batches.append(self._encoder.encode(np.stack(batch)))
        return np.concatenate(batches)

    @cached_property
    def _encoder(self) -> FrameEncoder:
        encoder = load_encoder(self._settings)
        if encoder.fingerprint != self._fingerprint:
            raise FingerprintError(
                f"the encoder on this node has fingerprint {encoder.fingerprint}, but the job's has "
                f"{self._fingerprint}; give every node the same weights and packages"
            )
        return encoder


def _commit(store: EmbeddingStore, videos: Sequence[VideoSource], report: EmbedReport) -> None:
    """Writes the manifest and the quarantine; videos of other jobs keep their entries."""
    store.commit()
    paths = {video.video_id: video.path for video in videos}
    before = store.quarantined()
    entries = {video_id: entry for video_id, entry in before.items() if video_id not in paths}
    for video_id, reason in report.quarantined.items():
        entries[video_id] = {"path": paths[video_id], "reason": reason}
    if entries != before:
        store.write_quarantine(entries)
