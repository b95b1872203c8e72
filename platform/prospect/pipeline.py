"""The jobs that prepare data, each from one composed configuration: what jobs/embed.py and jobs/label.py call."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from prospect.corpus import draw_corpus
from prospect.data.embeddings import EmbeddingStore
from prospect.data.labels.job import label
from prospect.data.labels.report import LabelReport
from prospect.data.sources import load_dialogues
from prospect.errors import DataError
from prospect.evaluation.job import EvaluationResult, evaluate_model
from prospect.reports.tables import render_table
from prospect.vision.job import EmbedReport, VideoSource, embed_videos

if TYPE_CHECKING:
    from prospect.config import Config

Report = Callable[[str], None]


def embeddings_root(config: "Config") -> str:
    """The embedding store of a storage root."""
    return f"{config.storage.root}/embeddings"


def draw_sample(config: "Config", report: Report = print) -> None:
    """Draws the sample corpus where `data.path` is its place; what is there with the same settings is kept."""
    folder = Path(config.storage.root) / "corpus"
    if config.data.path != str(folder):
        return

    drawn = 0

    def progress(done: int, total: int) -> None:
        nonlocal drawn
        drawn += 1
        if drawn > 1 and (done == total or done % 60 == 0):  # a finished corpus reports once
            report(f"draw   {done}/{total} videos")

    draw_corpus(config.corpus, folder, progress)


def embed(config: "Config", report: Report = print) -> EmbedReport:
    """Videos -> embeddings, one file a video below the storage root.

    Raises:
        DataError: no dialogue names a video that is there.
        ProspectError: see `embed_videos` and `load_dialogues`.
    """
    draw_sample(config, report)
    corpus = load_dialogues(config.data)
    if corpus.missing_videos:
        shown = ", ".join(corpus.missing_videos[:3])
        report(f"embed  {len(corpus.missing_videos)} videos have no file in {config.data.video_folder}: {shown} ...")
    if not corpus.videos:
        raise DataError(
            f"data.videos: {config.data.video_folder} holds none of the {len(corpus.dialogues)} dialogues' videos",
            field="data.videos",
        )
    videos = [VideoSource(video_id, str(path)) for video_id, path in sorted(corpus.videos.items())]
    step = max(1, len(videos) // 10)

    def progress(embedded: EmbedReport) -> None:
        done = len(embedded.outcomes)
        if done == embedded.total or (embedded.frames and done % step == 0):
            report(embedded.progress().replace("embed:", "embed "))

    embedded = embed_videos(videos, config.vision, embeddings_root(config), progress=progress)
    for video_id, reason in embedded.quarantined.items():
        report(f"embed  quarantined {video_id}: {reason}")
    return embedded


def make_labels(config: "Config", report: Report = print) -> LabelReport:
    """Annotations -> DST labels on the frames of the embeddings, or of the stated durations where there are none."""
    draw_sample(config, report)
    store = EmbeddingStore(embeddings_root(config))
    frames = {video: store.num_frames(video) for video in store.video_ids()}
    labels = label(config.data, config.storage.root, frames)
    Console(width=120).print(labels)
    report(f"label  written to {config.storage.root}/labels")
    return labels


def embed_and_show(config: "Config") -> EmbedReport:
    """`embed`, with its table at the end."""
    embedded = embed(config)
    Console(width=120).print(embedded.table())
    return embedded


def evaluate_and_show(config: "Config") -> EvaluationResult:
    """`evaluate_model`, with its table at the end."""
    result = evaluate_model(config)
    Console(width=100).print(render_table(result.scores, f"{result.model} on {config.evaluation.split}"))
    return result
