"""Embeds videos with Ray Data: decoders stream batches of pictures to a pool of encoders, the driver commits.

A video is decoded by one task and its batches may go to any encoder; they never cross videos and have one padded
shape, so that a result depends on no schedule. What is finished is skipped, what is broken is quarantined with
its reason, and the rest goes on. Nothing but the store's own files says what is finished, so a job that dies
continues where it was.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from rich.console import Console

from prospect.cluster.common import Report, draw_sample, embeddings_root, frames_in, track_job
from prospect.cluster.runtime import connect
from prospect.config.schema import Config
from prospect.data.embeddings import EmbeddingStore
from prospect.data.labels.report import count_labels
from prospect.data.sources import Corpus, feature_files, load_dialogues
from prospect.dialogue.timeline import FPS
from prospect.errors import ConfigError, DataError
from prospect.files import file_size, hash_source, is_file, open_filesystem, write_file
from prospect.vision.arrow import FRAMES_FILE_PHASE, is_frames_file
from prospect.vision.encoding import EncodeBatch
from prospect.vision.fingerprint import encoder_fingerprint
from prospect.vision.report import EmbedReport, Outcome, VideoSource, print_progress
from prospect.vision.settings import SAMPLING_PHASE, EmbeddingSettings, VisionSettings
from prospect.vision.stages import Batch, DecodeVideo, Failure, Row, item_of

if TYPE_CHECKING:
    from ray.data import Dataset

Progress = Callable[[EmbedReport], None]

WORKER_RETRIES = 1
"""How often a video, or a batch, is tried again whose worker process died (a decoder's crash, no memory)."""

VIDEOS_PER_TASK = 8
"""Videos that one decoder's task takes where there are many: Ray Data looks for ended tasks ten times a second."""
TASKS_PER_DECODER = 8
"""Fewer would leave decoders without work at the end."""

BATCHES_WAITING = 2
"""Batches of pictures that may wait in shared memory for each decoder and for each encoder."""


def embed(config: Config, report: Report = print) -> EmbedReport:
    """Videos -> embeddings, one file a video below the storage root; or features that somebody else extracted.

    Ends with two tables, of the videos and of the dialogues about them, and a finished run of the tracker. Where every
    video was embedded before, report and run stay those of the job that did it.

    Raises:
        DataError: no dialogue names a video that is there.
        ProspectError: see `embed_videos`, `import_features` and `load_dialogues`.
    """
    draw_sample(config, report)
    corpus = load_dialogues(config.data)

    def progress(embedded: EmbedReport) -> None:
        done = len(embedded.outcomes)
        if done == embedded.total or (embedded.encoded and done % max(1, embedded.total // 10) == 0):
            report(embedded.progress().replace("embed:", "embed "))

    make = _embed_videos if config.embedding.import_features is None else _import_features
    embedded = make(config, corpus, progress, report)
    console = Console(width=140)
    console.print(embedded.table())
    dialogues = count_labels(corpus, frames_in(config))
    console.print(dialogues)
    texts = {"embeddings.json": json.dumps(embedded.to_json(), indent=2), "dialogues.json": dialogues.to_json()}
    filesystem, root = open_filesystem(embeddings_root(config))
    if embedded.count("skipped") == embedded.total and is_file(filesystem, f"{root}/report/embeddings.json"):
        report(f"embed  all {embedded.total} videos were embedded before")
        return embedded
    for name, text in texts.items():
        write_file(filesystem, f"{root}/report/{name}", text.encode())
    track_job(config, "embed", dialogues.metrics() | embedded.metrics(), texts, report)
    return embedded


def _embed_videos(config: Config, corpus: Corpus, progress: Progress, report: Report) -> EmbedReport:
    if corpus.missing_videos:
        shown = ", ".join(corpus.missing_videos[:3])
        report(f"embed  {len(corpus.missing_videos)} videos have no file in {config.data.video_folder}: {shown} ...")
    if not corpus.videos:
        raise DataError(
            f"data.videos: {config.data.video_folder} holds none of the {len(corpus.dialogues)} dialogues' videos",
            field="data.videos",
        )
    videos = _sources(corpus, corpus.videos)
    return embed_videos(videos, config.vision, embeddings_root(config), config.embedding, progress=progress)


def _import_features(config: Config, corpus: Corpus, progress: Progress, report: Report) -> EmbedReport:
    if config.data.source != "proassist":
        raise ConfigError(
            f"embedding.import_features reads ProAssist's tree and not data.source={config.data.source}; "
            f"use data=proassist data.path=FOLDER",
            field="embedding.import_features",
        )
    from prospect.vision.features import import_features

    encoder = config.embedding.import_features or ""
    files = feature_files(config.data, corpus.dialogues, encoder)
    report(f"embed  importing the features of {encoder} for {len(files)} videos")
    videos, tokens = _sources(corpus, files), config.vision.tokens_per_frame
    return import_features(videos, encoder, tokens, embeddings_root(config), progress=progress)


def _sources(corpus: Corpus, paths: Mapping[str, str]) -> list[VideoSource]:
    known = {dialogue.video_id: dialogue for dialogue in corpus.dialogues}
    found = ((known[video_id], path) for video_id, path in sorted(paths.items()))
    return [VideoSource(about.video_id, path, about.dataset, about.split) for about, path in found]


def embed_videos(
    videos: Sequence[VideoSource],
    settings: VisionSettings,
    store_root: str,
    embedding: EmbeddingSettings | None = None,
    *,
    progress: Progress = print_progress,
    progress_s: float = 10.0,
) -> EmbedReport:
    """Brings the store to where it holds an embedding of every video that can be decoded.

    Args:
        videos: what to embed.
        settings: the encoder.
        store_root: folder or URL that the driver can write and every node can read.
        embedding: how the work is spread.
        progress: called with the growing report after each video, and with the next batch `progress_s` later.
        progress_s: seconds between two calls while no video is finished.

    Raises:
        DataError: the same video id twice, or no video.
        ConfigError: videos and frames files in one job, or `vision.phase` says the other kind.
        CheckpointError: the encoder's weights are missing or do not fit.
        FingerprintError: the store was made by another encoder.
        ConfigError: the cluster has no room for the encoders and a decoder.
    """
    _check(videos, settings)
    report = EmbedReport(videos, store_root, encoder_fingerprint(settings))
    store = EmbeddingStore(store_root)
    if store.video_ids():
        store.require(report.fingerprint)
    paths = {video.video_id: video.path for video in videos}
    began = shown = time.monotonic()
    report.sizes = _sizes(videos)
    finished = _all_finished(videos, store, report.fingerprint)
    try:
        for event in finished or _run(videos, settings, embedding or EmbeddingSettings(), store, report.fingerprint):
            if isinstance(event, Outcome):
                report.outcomes.append(event)
            else:
                report.encoded += event.frames
            now = time.monotonic()
            report.seconds = now - began
            if isinstance(event, Outcome) or now - shown >= progress_s:
                progress(report)
                shown = now
    except KeyboardInterrupt:
        store.finish(paths, report.quarantined)
        raise
    store.finish(paths, report.quarantined)
    return report


def _check(videos: Sequence[VideoSource], settings: VisionSettings) -> None:
    if not videos:
        raise DataError("no video to embed", field="videos")
    seen: dict[str, str] = {}
    for video in videos:
        if video.video_id in seen:
            raise DataError(
                f"video id {video.video_id!r} stands for two files, {seen[video.video_id]} and {video.path}",
                field="videos",
            )
        seen[video.video_id] = video.path
        phase = FRAMES_FILE_PHASE if is_frames_file(video.path) else SAMPLING_PHASE
        if phase != settings.phase:
            raise ConfigError(
                f"vision.phase is {settings.phase}, but the pictures of {video.path} are those of {phase}; "
                f"set vision.phase={phase}, and give frames files and videos stores of their own",
                field="vision.phase",
            )


def _sizes(videos: Sequence[VideoSource]) -> dict[str, int]:
    with ThreadPoolExecutor(32) as pool:  # a remote store answers each question after a while
        sizes = pool.map(file_size, (video.path for video in videos))
        return {video.video_id: size for video, size in zip(videos, sizes, strict=True) if size is not None}


def _all_finished(videos: Sequence[VideoSource], store: EmbeddingStore, fingerprint: str) -> list[Outcome] | None:
    """Outcomes of a job that has nothing to do, found without starting a worker; None where there is work."""
    if not {video.video_id for video in videos} <= set(store.video_ids()):
        return None

    def outcome(video: VideoSource) -> Outcome | None:
        try:
            same = store.has(video.video_id, hash_source(video.path), fingerprint)
        except OSError:
            return None
        return Outcome(video.video_id, "skipped", store.num_frames(video.video_id)) if same else None

    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter's lock
        outcomes = list(pool.map(outcome, videos))
    return [o for o in outcomes if o] if all(outcomes) else None


def _run(
    videos: Sequence[VideoSource],
    settings: VisionSettings,
    embedding: EmbeddingSettings,
    store: EmbeddingStore,
    fingerprint: str,
) -> Iterator[Outcome | Batch]:
    """Outcomes and encoded batches as they come; videos whose workers died come last, as quarantined.

    Those that shared a task with such a video are tried once more, each in a task of its own.
    """
    connect()
    places = _places(settings, embedding, len(videos))
    missing = {video.video_id: video for video in videos}
    for per_task in sorted({1, places.videos_per_task(len(videos))}, reverse=True):
        rows = _pipeline([*missing.values()], settings, embedding, places, per_task, store.root, fingerprint)
        for event in _collect(rows.iter_rows(), store, fingerprint, settings.tokens_per_frame):
            if isinstance(event, Outcome):
                missing.pop(event.video_id)
            yield event
        if not missing:
            return
    for video in missing.values():
        reason = f"a worker died each time that it read or encoded {video.path}"
        yield Outcome(video.video_id, "quarantined", reason=reason)


@dataclass(frozen=True)
class _Places:
    """What the cluster holds at once."""

    encoders: int
    decoders: int
    gpus: float
    """Share of a GPU that an encoder takes."""

    def videos_per_task(self, videos: int) -> int:
        return max(1, min(VIDEOS_PER_TASK, videos // (self.decoders * TASKS_PER_DECODER)))


def _pipeline(
    videos: Sequence[VideoSource],
    settings: VisionSettings,
    embedding: EmbeddingSettings,
    places: _Places,
    per_task: int,
    root: str,
    fingerprint: str,
) -> "Dataset":
    """Lists, decodes and encodes, in rows of `prospect.vision.stages`."""
    import ray
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    rows = [asdict(video) | {"path": _reachable(video.path)} for video in videos]
    tasks = math.ceil(len(rows) / per_task)
    dataset = (
        ray.data.from_items(cast(Any, rows), override_num_blocks=tasks)
        .flat_map(
            DecodeVideo(settings.image_size, settings.crop, settings.batch_size, root, fingerprint),
            compute=TaskPoolStrategy(size=min(places.decoders, tasks)),
            num_cpus=embedding.decoder_cpus,
            max_retries=WORKER_RETRIES,
        )
        .map(
            cast(Any, EncodeBatch),
            fn_constructor_args=(settings, fingerprint, embedding.encoder_threads),
            compute=ActorPoolStrategy(size=places.encoders, max_tasks_in_flight_per_actor=BATCHES_WAITING),
            num_cpus=embedding.encoder_cpus,
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


def _places(settings: VisionSettings, embedding: EmbeddingSettings, videos: int) -> _Places:
    """No more encoders than videos, unless they were asked for."""
    import ray

    cluster = ray.cluster_resources()
    cpus, gpus = cluster.get("CPU", 1.0), cluster.get("GPU", 0.0) if settings.device != "cpu" else 0.0
    room = math.floor(gpus / embedding.encoder_gpus) if gpus else max(1, int(cpus))
    encoders = embedding.num_encoders or room
    decoders = math.floor((cpus - encoders * embedding.encoder_cpus) / embedding.decoder_cpus + 1e-9)
    if decoders < 1 or (gpus and encoders > room):
        raise ConfigError(
            f"embedding.num_encoders={encoders} with embedding.encoder_cpus={embedding.encoder_cpus:g} and "
            f"embedding.encoder_gpus={embedding.encoder_gpus:g} leaves no room for a decoder of "
            f"embedding.decoder_cpus={embedding.decoder_cpus:g}, or does not fit at all: there are {cpus:g} CPUs and "
            f"{gpus:g} GPUs",
            field="embedding.num_encoders",
        )
    if embedding.num_encoders is None:
        encoders = min(encoders, videos)
    return _Places(encoders, decoders, embedding.encoder_gpus if gpus else 0.0)


def _reachable(path: str) -> str:
    """Workers run in other folders than the driver."""
    return path if "://" in path else str(Path(path).absolute())


@dataclass
class _Unfinished:
    """What has come of a video so far; batches come in any order, and one twice if its worker died."""

    parts: dict[int, np.ndarray] = field(default_factory=dict)
    last: Batch | None = None
    """Its last batch, once that has come."""

    @property
    def complete(self) -> bool:
        return self.last is not None and len(self.parts) == self.last.index + 1


def _collect(rows: Iterable[Row], store: EmbeddingStore, fingerprint: str, tokens: int) -> Iterator[Outcome | Batch]:
    """Puts each video's batches together and commits it when the last has come."""
    waiting: dict[str, _Unfinished] = {}
    ended: set[str] = set()
    for row in rows:
        item = item_of(row)
        if isinstance(item, Failure):
            raise item.error
        if item.video_id in ended:
            continue
        video = waiting.setdefault(item.video_id, _Unfinished())
        if isinstance(item, Batch):
            video.parts[item.index] = np.array(row["values"]).view(np.float16).reshape(item.frames, tokens, -1)
            video.last = item if item.source_hash else video.last
            yield item
        outcome = item if isinstance(item, Outcome) else None
        if video.complete:
            outcome = _write(item.video_id, video, store, fingerprint)
        if outcome is not None:
            ended.add(item.video_id)
            del waiting[item.video_id]
            yield outcome


def _write(video_id: str, video: _Unfinished, store: EmbeddingStore, fingerprint: str) -> Outcome:
    assert video.last is not None
    frames = np.concatenate([video.parts[index] for index in range(len(video.parts))])
    try:
        store.write(video_id, frames, fps=FPS, source_hash=video.last.source_hash, fingerprint=fingerprint)
    except DataError as error:
        return Outcome(video_id, "quarantined", reason=str(error))
    return Outcome(video_id, "done", len(frames))
