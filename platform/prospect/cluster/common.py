"""Functions that several jobs use: draw the sample corpus, count embedded frames, track a job."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from prospect.config.schema import Config
from prospect.data.embeddings import EmbeddingStore
from prospect.vision.settings import DECODER_VERSION

ReportLine = Callable[[str], None]
"""Takes one line of progress at a time."""

_PARAMETERS = {"embed": ("data", "vision", "embedding"), "label": ("data", "labels")}
"""Sections of the configuration that are logged as a job's parameters."""


def embeddings_root(config: Config) -> str:
    """Path of the embedding store under the storage root."""
    return f"{config.storage.root}/embeddings"


def draw_sample(config: Config, report: ReportLine = print) -> None:
    """Draw the sample corpus if `data.path` is its folder; videos drawn with the same settings are kept."""
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


def frames_in(config: Config) -> Callable[[str], int | None]:
    """A function: video id -> number of embedded frames, or None where the video is not embedded."""
    store = EmbeddingStore(embeddings_root(config))
    stored = set(store.video_ids())
    return lambda video_id: store.num_frames(video_id) if video_id in stored else None


def report_earlier_decoder(store: EmbeddingStore, job: str, report: ReportLine) -> None:
    """Say how many videos of a store were embedded by an earlier decoder and not compared with this one since."""
    if unchecked := len(store.unchecked(DECODER_VERSION)):
        report(
            f"{job:6} {unchecked} videos in {store.root} were embedded by an earlier decoder than {DECODER_VERSION}; "
            f"jobs/embed.py embeds those again that now give other pictures"
        )


def track_job(
    config: Config, job: str, metrics: Mapping[str, float], texts: Mapping[str, str], about: str, report: ReportLine
) -> None:
    """Log a finished job to the tracker; the default database needs a local storage root."""
    named = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if "://" in config.storage.root and not named:
        report(f"{job:6} not tracked: storage.root is a URL, so name a server with tracking.uri or MLFLOW_TRACKING_URI")
        return
    from prospect.tracking.tracking import Tracking  # with MLflow

    tracking = Tracking(config.tracking, config.storage.root)
    whole = config.model_dump(mode="json")
    parameters = {section: whole[section] for section in _PARAMETERS[job]}
    run = tracking.log_job(job, config=whole, parameters=parameters, metrics=metrics, texts=texts, about=about)
    report(f"{job:6} tracked as run {run.id}: {tracking.where(run)}")
