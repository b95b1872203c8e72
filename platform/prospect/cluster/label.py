"""Label annotations with DST events, with Ray Data: assign times to steps and frames to events, and report counts.

Steps with times in the source keep them. Other steps get theirs from the video's annotation lines, which are mapped to
steps by the aligner inside the tasks, or by a language model before them.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from itertools import groupby

from prospect.cluster.common import ReportLine, draw_sample, frames_in, track_job
from prospect.cluster.runtime import connect
from prospect.config.schema import Config
from prospect.data.labels.llm.report import MappingReport
from prospect.data.labels.proassist import to_proassist
from prospect.data.labels.report import DialogueLabels, LabelReport, summarize
from prospect.data.labels.settings import LabelSettings
from prospect.data.labels.table import to_tsv
from prospect.data.labels.video import FramesOf, LabelVideo, VideoLabels, by_video, label_video, load_encoder
from prospect.data.sources import Corpus, load_dialogues, to_jsonl
from prospect.dialogue.schema import Dialogue
from prospect.errors import DataError
from prospect.escape import folder_name
from prospect.files import open_filesystem, write_file
from prospect.terminal import console

VideoProgress = Callable[[str, int, int], None]
"""(what is done, videos done, videos in all)."""

PROGRESS_S = 5.0
"""Seconds between two lines of progress."""


def make_labels(config: Config, report: ReportLine = print) -> LabelReport:
    """Label the configured data on the frames of its embeddings, or on those of the stated durations.

    Prints the table, draws the plots and tracks the job.
    """
    draw_sample(config, report)
    began: dict[str, tuple[int, float]] = {}
    shown = time.monotonic()

    def progress(what: str, done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        first, start = began.setdefault(
            what, (done, now)
        )  # the pace counts from the first video, after models are loaded
        if done > first and now - shown >= PROGRESS_S:
            left = timedelta(seconds=round((now - start) / (done - first) * (total - done)))
            report(f"label  {done}/{total} videos {what}, {left} left")
            shown = now

    root, frames_of = config.storage.root, frames_in(config)
    corpus = load_dialogues(config.data)
    labels = label(corpus, root, frames_of, config.labels, progress)
    out = console(140)
    out.print(labels)
    if labels.mapping is not None:
        out.print(labels.mapping)
    for sentence in labels.remarks():
        report(f"label  {sentence}")
    from prospect.reports.statistics import plot_statistics  # with matplotlib

    page, *_ = plot_statistics(corpus.dialogues, root, frames_of)
    report(f"label  written to {root}/labels, plots in {page}")
    texts = {"report.json": labels.to_json()}
    if labels.mapping is not None:
        texts["mapping.json"] = labels.mapping.to_json()
    track_job(config, "label", labels.metrics(), texts, _about(config, labels), report)
    return labels


def _about(config: Config, labels: LabelReport) -> str:
    """One sentence for the run's page."""
    videos, dialogues, found = (
        sum(getattr(row, name) for row in labels.rows) for name in ("videos", "dialogues", "labels")
    )
    return f"Labels of {config.data.path}: {dialogues:,} dialogues on {videos:,} videos, {found:,} labels."


def label_and_show(config: Config, report: ReportLine = print) -> None:
    """Run `make_labels`, or write a page on one video's labels with `preview=VIDEO`."""
    if config.preview is None:
        make_labels(config, report)
        return
    from prospect.reports.preview.page import preview_video

    draw_sample(config, report)
    corpus = load_dialogues(config.data)
    page = preview_video(config.preview, corpus, config.storage.root, frames_in(config), config.context)
    report(f"label  preview written to {page}")


def label(
    corpus: Corpus,
    root: str,
    frames_of: FramesOf = lambda _: None,
    settings: LabelSettings | None = None,
    progress: VideoProgress = lambda what, done, total: None,
) -> LabelReport:
    """Label a corpus in place, and write dialogues, ProAssist's JSON, a table and the report to `labels/` in `root`.

    Args:
        corpus: the source; its dialogues are replaced by labelled ones without annotation lines.
        root: absolute path or URL of the storage root.
        frames_of: frames of an embedded video; for others the source's duration decides.
        settings: how steps get their times.
        progress: called as videos are done.

    Raises:
        DataError: the corpus has no usable dialogue.
        ConfigError: the sentence encoder is missing.
        EndpointError: the language model's endpoint does not work.
    """
    settings = settings or LabelSettings()
    if not corpus.dialogues:
        why = f": {corpus.quarantined[0]}" if corpus.quarantined else ""
        raise DataError(f"`data.path` has no usable dialogue{why}", field="data.path")
    videos, places = by_video(corpus.dialogues, frames_of)
    untimed = [place for place, video in enumerate(videos) if video.lines]
    if untimed:
        load_encoder(settings.similarity)  # a wrong name fails before any work
    mapping = None
    if settings.mapper == "llm":
        mapping = _map_with_llm([videos[place] for place in untimed], settings, root, progress)
        for place, answer in zip(untimed, mapping.results, strict=True):
            videos[place] = videos[place].model_copy(update={"mapping": answer})
    report = _label(corpus, videos, places, settings, mapping, progress)
    _write(root, corpus.dialogues, report)
    return report


def _map_with_llm(
    videos: Sequence[LabelVideo], settings: LabelSettings, root: str, progress: VideoProgress
) -> MappingReport:
    from prospect.data.labels.llm.mapping import map_videos  # with the client of the endpoint

    done = iter(range(1, len(videos) + 1))
    requests = [video.request(settings) for video in videos]
    return map_videos(requests, settings.llm, root, lambda _: progress("asked about", next(done), len(videos)))


def _label(
    corpus: Corpus,
    videos: list[LabelVideo],
    places: list[list[int]],
    settings: LabelSettings,
    mapping: MappingReport | None,
    progress: VideoProgress,
) -> LabelReport:
    """Replace the corpus's dialogues by labelled ones, and summarise the labels."""
    labels: dict[int, DialogueLabels] = {}
    results: dict[int, VideoLabels] = {}
    for place, result in _label_videos(videos, settings):
        results[place] = result
        for index, dialogue, counts in zip(places[place], videos[place].dialogues, result.labels, strict=True):
            labels[index] = counts
            corpus.dialogues[index] = dialogue.model_copy(update={"steps": result.steps or dialogue.steps})
        progress("labelled", len(results), len(videos))
    ordered = [results[place] for place in range(len(videos))]
    report = summarize(
        [(dialogue, labels[index]) for index, dialogue in enumerate(corpus.dialogues)],
        corpus.quarantined,
        [record for result in ordered for record in result.quarantined],
        duplicates=corpus.duplicates,
        overlaps=[record for result in ordered for record in result.overlaps],
        mapping=mapping,
    )
    return report.about(corpus)


def _label_videos(videos: list[LabelVideo], settings: LabelSettings) -> Iterator[tuple[int, VideoLabels]]:
    """Label the videos in Ray Data tasks, and yield (place, labels) as they finish."""
    import ray.data

    def task(row: dict[str, str]) -> dict[str, str]:
        result = label_video(LabelVideo.model_validate_json(row["video"]), settings)
        return {"place": row["place"], "result": result.model_dump_json()}

    connect()
    rows = [
        {"place": place, "video": video.model_dump_json(exclude_defaults=True)} for place, video in enumerate(videos)
    ]
    blocks = math.ceil(len(rows) / settings.videos_per_block)
    for row in ray.data.from_items(rows, override_num_blocks=blocks).map(task).iter_rows():
        yield int(row["place"]), VideoLabels.model_validate_json(row["result"])


def _write(root: str, dialogues: Sequence[Dialogue], report: LabelReport) -> None:
    filesystem, base = open_filesystem(root)

    def write(name: str, parts: Iterable[bytes]) -> None:
        write_file(filesystem, f"{base}/labels/{name}", parts)

    write("dialogues.jsonl", (to_jsonl([dialogue]).encode() for dialogue in dialogues))
    write("labels.tsv", to_tsv(dialogues))
    write("report.json", [report.to_json().encode()])
    groups = sorted(dialogues, key=lambda dialogue: (dialogue.dataset, dialogue.split))
    for (dataset, split), members in groupby(groups, key=lambda dialogue: (dialogue.dataset, dialogue.split)):
        write(f"proassist/{folder_name(dataset)}/{split}.json", to_proassist(members))
