"""The jobs that prepare data, each from one composed configuration: what jobs/embed.py and jobs/label.py call."""

import json
import os
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from prospect.data.embeddings import EmbeddingStore
from prospect.data.labels.job import label
from prospect.data.labels.report import LabelReport, count_labels
from prospect.data.sources import Corpus, feature_files, load_dialogues
from prospect.errors import ConfigError, DataError
from prospect.files import is_file, open_filesystem, write_file
from prospect.vision.job import embed_videos
from prospect.vision.report import EmbedReport, VideoSource

if TYPE_CHECKING:
    from prospect.config import Config

Report = Callable[[str], None]
Progress = Callable[[EmbedReport], None]

PROGRESS_S = 5.0
"""Seconds between two lines of progress."""

_PARAMETERS = {"embed": ("data", "vision", "embedding"), "label": ("data", "labels")}
"""Sections of the configuration by which the runs of a job are compared."""


def embeddings_root(config: "Config") -> str:
    """The embedding store of a storage root."""
    return f"{config.storage.root}/embeddings"


def draw_sample(config: "Config", report: Report = print) -> None:
    """Draws the sample corpus where `data.path` is its place; what is there with the same settings is kept."""
    folder = Path(config.storage.root) / "corpus"
    if config.data.path != str(folder):
        return

    from prospect.corpus.draw import draw_corpus  # with the encoder of videos

    drawn = 0

    def progress(done: int, total: int) -> None:
        nonlocal drawn
        drawn += 1
        if drawn > 1 and (done == total or done % 60 == 0):  # a finished corpus reports once
            report(f"draw   {done}/{total} videos")

    draw_corpus(config.corpus, folder, progress)


def embed(config: "Config", report: Report = print) -> EmbedReport:
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
    _track(config, "embed", dialogues.metrics() | embedded.metrics(), texts, report)
    return embedded


def _embed_videos(config: "Config", corpus: Corpus, progress: Progress, report: Report) -> EmbedReport:
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


def _import_features(config: "Config", corpus: Corpus, progress: Progress, report: Report) -> EmbedReport:
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


def make_labels(config: "Config", report: Report = print) -> LabelReport:
    """Annotations -> DST labels on the frames of the embeddings, or of the stated durations where there are none.

    Ends with the table, the plots, and a finished run of the tracker.
    """
    draw_sample(config, report)
    began: dict[str, tuple[int, float]] = {}
    shown = time.monotonic()

    def progress(what: str, done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        first, start = began.setdefault(what, (done, now))  # models are loaded: from here on the pace tells
        if done > first and now - shown >= PROGRESS_S:
            left = timedelta(seconds=round((now - start) / (done - first) * (total - done)))
            report(f"label  {done}/{total} videos {what}, {left} left")
            shown = now

    root, frames_of = config.storage.root, frames_in(config)
    corpus = load_dialogues(config.data)
    labels = label(corpus, root, frames_of, config.labels, progress)
    console = Console(width=140)
    console.print(labels)
    if labels.mapping is not None:
        console.print(labels.mapping)
    for sentence in labels.remarks():
        report(f"label  {sentence}")
    from prospect.reports.statistics import plot_statistics  # with matplotlib

    page, *_ = plot_statistics(corpus.dialogues, root, frames_of)
    report(f"label  written to {root}/labels, plots in {page}")
    texts = {"report.json": labels.to_json()}
    if labels.mapping is not None:
        texts["mapping.json"] = labels.mapping.to_json()
    _track(config, "label", labels.metrics(), texts, report)
    return labels


def label_and_show(config: "Config", report: Report = print) -> None:
    """`make_labels`; or, with `preview=VIDEO`, one page on that video's labels."""
    if config.preview is None:
        make_labels(config, report)
        return
    from prospect.reports.preview import preview_video

    draw_sample(config, report)
    corpus = load_dialogues(config.data)
    page = preview_video(config.preview, corpus, config.storage.root, frames_in(config), config.context)
    report(f"label  preview written to {page}")


def frames_in(config: "Config") -> Callable[[str], int | None]:
    """T of a video that is embedded below the storage root, None of another."""
    store = EmbeddingStore(embeddings_root(config))
    stored = set(store.video_ids())
    return lambda video_id: store.num_frames(video_id) if video_id in stored else None


def _track(config: "Config", job: str, metrics: Mapping[str, float], texts: Mapping[str, str], report: Report) -> None:
    """Leaves a run in the tracker; a storage root on an object store has no place for the default database."""
    named = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if "://" in config.storage.root and not named:
        report(f"{job:6} not tracked: storage.root is a URL, so name a server with tracking.uri or MLFLOW_TRACKING_URI")
        return
    from prospect.tracking.tracking import Tracking  # with MLflow

    tracking = Tracking(config.tracking, config.storage.root)
    whole = config.model_dump(mode="json")
    parameters = {section: whole[section] for section in _PARAMETERS[job]}
    run = tracking.log_job(job, config=whole, parameters=parameters, metrics=metrics, texts=texts)
    report(f"{job:6} tracked as run {run.id}: {tracking.where(run)}")


def evaluate_and_show(config: "Config") -> None:
    """`evaluate_model`, with its table at the end."""
    from prospect.evaluation.job import evaluate_model
    from prospect.reports.tables import render_table  # both with scipy

    result = evaluate_model(config)
    Console(width=100).print(render_table(result.scores, f"{result.model} on {config.evaluation.split}"))
