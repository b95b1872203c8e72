"""The embedding job: brings the store to where it holds every video that can be decoded, and reports.

Finished videos are skipped and broken ones quarantined with their reason. Only the store's own files say what is
finished, so that an interrupted job continues where it stopped.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from prospect.cluster.common import ReportLine, draw_sample, embeddings_root, frames_in, track_job
from prospect.cluster.embed_pipeline import divide, stream_embeddings
from prospect.cluster.gpus import allot
from prospect.config.schema import ClusterSettings, Config
from prospect.data.embeddings import EmbeddingStore
from prospect.data.labels.report import count_labels
from prospect.data.sources import Corpus, feature_files, load_dialogues
from prospect.data.stored_names import plain_name
from prospect.errors import ConfigError, DataError
from prospect.files import file_size, hash_source, is_file, open_filesystem, write_file
from prospect.terminal import console
from prospect.vision.arrow import FRAMES_FILE_PHASE, is_frames_file
from prospect.vision.fingerprint import encoder_fingerprint
from prospect.vision.report import EmbedReport, VideoOutcome, VideoSource, print_progress
from prospect.vision.settings import DECODER_VERSION, SAMPLING_PHASE, EmbeddingSettings, VisionSettings
from prospect.vision.stages import PictureBatch

EmbedCallback = Callable[[EmbedReport], None]


def embed(config: Config, report: ReportLine = print) -> EmbedReport:
    """Embed the videos of a source below the storage root, or import features that were extracted elsewhere.

    Prints a table of the videos and one of their dialogues, writes both as reports and leaves a run in the tracker.
    With nothing to embed, reports and run stay as they are.

    Raises:
        DataError: no dialogue names a video that is there.
        ProspectError: see `embed_videos`, `import_features` and `load_dialogues`.
    """
    draw_sample(config, report)
    corpus = load_dialogues(config.data)
    before = EmbeddingStore(embeddings_root(config)).quarantined()

    def progress(embedded: EmbedReport) -> None:
        done = len(embedded.outcomes)
        if done == embedded.total or (embedded.encoded and done % max(1, embedded.total // 10) == 0):
            report(embedded.progress().replace("embed:", "embed "))

    make = _embed_videos if config.embedding.import_features is None else _import_features
    embedded = make(config, corpus, progress, report)
    out = console(140)
    out.print(embedded.table())
    dialogues = count_labels(corpus, frames_in(config))
    out.print(dialogues)
    for line in embedded.remarks(len(corpus.missing_videos)):
        report(f"embed  {line}")
    texts = {"embeddings.json": json.dumps(embedded.to_json(), indent=2), "dialogues.json": dialogues.to_json()}
    filesystem, root = open_filesystem(embeddings_root(config))
    if embedded.is_nothing_new(before) and is_file(filesystem, f"{root}/report/embeddings.json"):
        report(f"embed  nothing new: {embedded.count('skipped')} of {embedded.total} videos were embedded before")
        return embedded
    for name, text in texts.items():
        write_file(filesystem, f"{root}/report/{name}", text.encode())
    track_job(config, "embed", dialogues.metrics() | embedded.metrics(), texts, _about(config, embedded), report)
    return embedded


def _about(config: Config, embedded: EmbedReport) -> str:
    """One sentence for the run's page."""
    left_out = embedded.count("quarantined")
    rest = f", {left_out:,} left out" if left_out else ""
    return f"Embeddings of {config.data.path} by {config.vision.model}: {embedded.total:,} videos{rest}."


def _embed_videos(config: Config, corpus: Corpus, progress: EmbedCallback, report: ReportLine) -> EmbedReport:
    if corpus.missing_videos:
        shown = ", ".join(corpus.missing_videos[:3])
        report(f"embed  {len(corpus.missing_videos)} videos have no file in {config.data.video_folder}: {shown} ...")
    if not corpus.videos:
        raise DataError(
            f"data.videos ({config.data.video_folder}) must hold the videos of the {len(corpus.dialogues)} dialogues, "
            f"but holds none of them",
            field="data.videos",
        )
    videos = _sources(corpus, corpus.videos)
    return embed_videos(
        videos,
        config.vision,
        embeddings_root(config),
        config.embedding,
        config.cluster,
        progress=progress,
        report_line=report,
    )


def _import_features(config: Config, corpus: Corpus, progress: EmbedCallback, report: ReportLine) -> EmbedReport:
    if config.data.source != "proassist":
        raise ConfigError(
            f"embedding.import_features needs data.source=proassist, not {config.data.source}; "
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
    cluster: ClusterSettings | None = None,
    *,
    progress: EmbedCallback = print_progress,
    progress_s: float = 10.0,
    report_line: ReportLine = print,
) -> EmbedReport:
    """Embed every video that the store lacks.

    Args:
        videos: what to embed.
        settings: the encoder.
        store_root: folder or URL that the driver can write and every node can read.
        embedding: how the work is spread.
        cluster: whether encoders run on GPUs.
        progress: called with the growing report after each video, and with the next batch `progress_s` later.
        progress_s: seconds between two calls while no video is finished.
        report_line: takes what is said before the first video.

    Raises:
        DataError: a video id is given twice or cannot be stored, or videos are missing.
        ConfigError: `vision.phase` does not fit a file, the cluster has no room for the encoders and a decoder, or
            never has `cluster.gpus`.
        CheckpointError: the encoder's weights are missing or do not fit.
        FingerprintError: the store was made by another encoder.
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
        for event in finished or _embed(videos, settings, embedding, cluster, store, report_line):
            if isinstance(event, VideoOutcome):
                report.outcomes.append(event)
            else:
                report.encoded += event.frames
            now = time.monotonic()
            report.seconds = now - began
            if isinstance(event, VideoOutcome) or now - shown >= progress_s:
                progress(report)
                shown = now
    except KeyboardInterrupt:
        store.finish(paths, report.quarantined)
        raise
    store.note_alike([outcome.video_id for outcome in report.outcomes if outcome.alike], DECODER_VERSION)
    store.finish(paths, report.quarantined)
    return report


def _embed(
    videos: Sequence[VideoSource],
    settings: VisionSettings,
    embedding: EmbeddingSettings | None,
    cluster: ClusterSettings | None,
    store: EmbeddingStore,
    report: ReportLine,
) -> Iterator[VideoOutcome | PictureBatch]:
    from prospect.cluster.job_metrics import export_embedding  # with Ray

    allotment = allot(cluster or ClusterSettings(), "embed", report)
    places = divide(allotment, embedding or EmbeddingSettings(), len(videos))
    yield from export_embedding(stream_embeddings(videos, settings, places, store, encoder_fingerprint(settings)))


def _check(videos: Sequence[VideoSource], settings: VisionSettings) -> None:
    if not videos:
        raise DataError("videos must name at least one video", field="videos")
    seen: dict[str, str] = {}
    for video in videos:
        plain_name(video.video_id)
        if video.video_id in seen:
            raise DataError(
                f"video id {video.video_id!r} names two files, {seen[video.video_id]} and {video.path}; rename one",
                field="videos",
            )
        seen[video.video_id] = video.path
        phase = FRAMES_FILE_PHASE if is_frames_file(video.path) else SAMPLING_PHASE
        if phase != settings.phase:
            raise ConfigError(
                f"vision.phase ({settings.phase}) must be {phase} for {video.path}; "
                f"set vision.phase={phase}, and embed frames files and videos into separate stores",
                field="vision.phase",
            )


def _sizes(videos: Sequence[VideoSource]) -> dict[str, int]:
    with ThreadPoolExecutor(32) as pool:  # a remote store answers each question after a while
        sizes = pool.map(file_size, (video.path for video in videos))
        return {video.video_id: size for video, size in zip(videos, sizes, strict=True) if size is not None}


def _all_finished(videos: Sequence[VideoSource], store: EmbeddingStore, fingerprint: str) -> list[VideoOutcome] | None:
    """Return each video's outcome if all are in the store, without starting a worker; None if any is left to embed."""
    if not {video.video_id for video in videos} <= set(store.video_ids()):
        return None

    alike = store.alike(DECODER_VERSION)

    def outcome(video: VideoSource) -> VideoOutcome | None:
        try:
            same = store.has(video.video_id, hash_source(video.path), fingerprint)
        except OSError:
            return None
        if not same:
            return None
        stored = store.stored(video.video_id)
        known = stored.decoder >= DECODER_VERSION or video.video_id in alike
        return VideoOutcome(video.video_id, "skipped", stored.num_frames) if known else None

    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter's lock
        outcomes = list(pool.map(outcome, videos))
    return [o for o in outcomes if o] if all(outcomes) else None
