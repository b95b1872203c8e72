"""The embedding job's Ray Data pipeline: decoders stream batches of pictures to a pool of encoders, the driver commits.

One task decodes a video; any encoder takes its batches. A batch holds pictures of one video only, so that an embedding
does not depend on the schedule.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from prospect.cluster.gpus import Allotment
from prospect.cluster.runtime import reserved_device
from prospect.data.embeddings import EmbeddingStore
from prospect.dialogue.timeline import FPS
from prospect.errors import ConfigError, DataError
from prospect.vision.encoding import EncodeBatch
from prospect.vision.report import VideoOutcome, VideoSource
from prospect.vision.settings import DECODER_VERSION, EmbeddingSettings, VisionSettings
from prospect.vision.stages import DecodeVideo, PictureBatch, StageFailure, StageRow, item_of

if TYPE_CHECKING:
    from ray.data import Dataset

WORKER_RETRIES = 1
"""Retries of a video or batch whose worker process died (a decoder's crash, out of memory)."""

VIDEOS_PER_TASK = 8
"""Most videos in one decoding task: Ray Data looks for finished tasks ten times a second."""

TASKS_PER_DECODER = 8
"""Least tasks for each decoder; with fewer, decoders would idle at the end."""

BATCHES_WAITING = 2
"""Batches of pictures that wait in shared memory, for each decoder and each encoder."""


def stream_embeddings(
    videos: Sequence[VideoSource],
    settings: VisionSettings,
    places: "Places",
    store: EmbeddingStore,
    fingerprint: str,
) -> Iterator[VideoOutcome | PictureBatch]:
    """Yield outcomes and encoded batches as they come; commit each finished video to the store.

    Videos whose task died are tried once more, each in its own task; those that fail again come last, as quarantined.

    Raises:
        ProspectError: a worker met an error that concerns every video.
    """
    missing = {video.video_id: video for video in videos}
    for per_task in sorted({1, places.videos_per_task(len(videos))}, reverse=True):
        rows = _pipeline([*missing.values()], settings, places, per_task, store, fingerprint)
        for event in _collect(rows.iter_rows(), store, fingerprint, settings.tokens_per_frame):
            if isinstance(event, VideoOutcome):
                missing.pop(event.video_id)
            yield event
        if not missing:
            return
    for video in missing.values():
        reason = f"a worker died each time that it read or encoded {video.path}"
        yield VideoOutcome(video.video_id, "quarantined", reason=reason)


@dataclass(frozen=True)
class Places:
    """How many encoders and decoders run at once, and what each reserves."""

    encoders: int
    decoders: int
    gpus: float
    """Share of a GPU for each encoder."""
    spread: EmbeddingSettings = field(default_factory=EmbeddingSettings)

    def videos_per_task(self, videos: int) -> int:
        return max(1, min(VIDEOS_PER_TASK, videos // (self.decoders * TASKS_PER_DECODER)))


def _pipeline(
    videos: Sequence[VideoSource],
    settings: VisionSettings,
    places: Places,
    per_task: int,
    store: EmbeddingStore,
    fingerprint: str,
) -> "Dataset":
    """Build the lazy pipeline; its rows are those of `prospect.vision.stages`."""
    import ray
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    spread = places.spread
    rows = [asdict(video) | {"path": _reachable(video.path)} for video in videos]
    tasks = math.ceil(len(rows) / per_task)
    alike = frozenset(store.alike(DECODER_VERSION))
    dataset = (
        ray.data.from_items(cast(Any, rows), override_num_blocks=tasks)
        .flat_map(
            DecodeVideo(settings.image_size, settings.crop, settings.batch_size, store.root, fingerprint, alike),
            compute=TaskPoolStrategy(size=min(places.decoders, tasks)),
            num_cpus=spread.decoder_cpus,
            max_retries=WORKER_RETRIES,
        )
        .map(
            cast(Any, EncodeBatch),
            fn_constructor_args=(settings, fingerprint, spread.encoder_threads, reserved_device),
            compute=ActorPoolStrategy(size=places.encoders, max_tasks_in_flight_per_actor=BATCHES_WAITING),
            num_cpus=spread.encoder_cpus,
            num_gpus=places.gpus,
            max_task_retries=WORKER_RETRIES,
        )
    )
    pictures = settings.batch_size * settings.image_size**2 * 3
    context = dataset.context
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # exceptions come as rows, so that only deaths are left
    context.target_max_block_size = 1  # every row leaves its task at once, as a block of its own
    limits = context.execution_options.resource_limits
    context.execution_options.resource_limits = limits.copy(
        object_store_memory=float(pictures * BATCHES_WAITING * (places.encoders + places.decoders))
    )
    return dataset


def divide(allotment: Allotment, embedding: EmbeddingSettings, videos: int) -> Places:
    """Divide what the job may ask for among encoders and decoders; by default at most one encoder a video.

    Raises:
        ConfigError: there is no room for the encoders and a decoder.
    """
    cpus, gpus = allotment.cpus, allotment.gpus
    room = math.floor(gpus / embedding.encoder_gpus) if gpus else max(1, int(cpus))
    encoders = embedding.num_encoders or room
    decoders = math.floor((cpus - encoders * embedding.encoder_cpus) / embedding.decoder_cpus + 1e-9)
    if decoders < 1 or (gpus and encoders > room):
        raise ConfigError(
            f"embedding.num_encoders ({encoders}) must leave room for a decoder: the cluster has {cpus:g} CPUs and "
            f"{gpus:g} GPUs, an encoder takes embedding.encoder_cpus={embedding.encoder_cpus:g} and "
            f"embedding.encoder_gpus={embedding.encoder_gpus:g}, a decoder "
            f"embedding.decoder_cpus={embedding.decoder_cpus:g}; lower them",
            field="embedding.num_encoders",
        )
    if embedding.num_encoders is None:
        encoders = min(encoders, videos)
    return Places(encoders, decoders, embedding.encoder_gpus if gpus else 0.0, embedding)


def _reachable(path: str) -> str:
    """Make a local path absolute: a worker's current folder is not the driver's."""
    return path if "://" in path else str(Path(path).absolute())


@dataclass
class _Unfinished:
    """The batches of a video so far; they come in any order, and again after a retry."""

    parts: dict[int, np.ndarray] = field(default_factory=dict)
    last: PictureBatch | None = None

    @property
    def complete(self) -> bool:
        return self.last is not None and len(self.parts) == self.last.index + 1


def _collect(
    rows: Iterable[StageRow], store: EmbeddingStore, fingerprint: str, tokens: int
) -> Iterator[VideoOutcome | PictureBatch]:
    """Join the batches of each video and write it to the store once it is complete."""
    waiting: dict[str, _Unfinished] = {}
    ended: set[str] = set()
    for row in rows:
        item = item_of(row)
        if isinstance(item, StageFailure):
            raise item.error
        if item.video_id in ended:
            continue
        video = waiting.setdefault(item.video_id, _Unfinished())
        if isinstance(item, PictureBatch):
            video.parts[item.index] = np.array(row["values"]).view(np.float16).reshape(item.frames, tokens, -1)
            video.last = item if item.source_hash else video.last
            yield item
        outcome = item if isinstance(item, VideoOutcome) else None
        if video.complete:
            outcome = _write(item.video_id, video, store, fingerprint)
        if outcome is not None:
            ended.add(item.video_id)
            del waiting[item.video_id]
            yield outcome


def _write(video_id: str, video: _Unfinished, store: EmbeddingStore, fingerprint: str) -> VideoOutcome:
    assert video.last is not None
    frames = np.concatenate([video.parts[index] for index in range(len(video.parts))])
    try:
        store.write(
            video_id,
            frames,
            fps=FPS,
            source_hash=video.last.source_hash,
            fingerprint=fingerprint,
            decoder=DECODER_VERSION,
        )
    except DataError as error:
        return VideoOutcome(video_id, "quarantined", reason=str(error))
    return VideoOutcome(video_id, "done", len(frames), again=video.last.again)
