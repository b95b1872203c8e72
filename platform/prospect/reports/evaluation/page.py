"""One HTML page on an evaluation: scores with intervals, curves, the worst and best dialogues with their timelines.

The page holds everything that it shows: it opens from disk, without a network. Where the evaluated videos may not
leave a machine, neither may a page with pictures of them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jinja2

from prospect.dialogue.timeline import FPS
from prospect.evaluation.comparison import RANKED_BY, rank, ranked_by, scores_of
from prospect.evaluation.intervals import Interval
from prospect.evaluation.judge_prompt import CRITERIA
from prospect.evaluation.judge_report import JudgeReport
from prospect.evaluation.lineage import counted
from prospect.evaluation.metrics import Scores, SliceScores
from prospect.evaluation.pace_record import PaceReport
from prospect.evaluation.predictions import Predictions
from prospect.evaluation.records import VideoDecisions
from prospect.evaluation.settings import EvaluationSettings
from prospect.evaluation.text_intervals import TextScores
from prospect.files import write_text
from prospect.reports.evaluation.charts import HEIGHT, WIDTH, Chart, charts_of
from prospect.reports.evaluation.dialogue import DialogueTimeline, dialogue_timeline, name_of, signed
from prospect.reports.evaluation.pictures import add_pictures
from prospect.reports.evaluation.words import number, words
from prospect.reports.preview.tracks import OVERVIEW, clock
from prospect.settings import flatten
from prospect.similarity import SentenceEncoder

HEADLINES = ("joint_goal_accuracy", "readout_joint_goal_accuracy", "turn_f1", "content_f1", "dst_f1", "time_diff")
"""Metrics at the head of the page, as far as they are defined."""


Advantage = Mapping[str, Mapping[str, Interval | None]]
"""By how much a model is better, by metric and rival; None where a metric is undefined."""


@dataclass(frozen=True)
class ScoreTile:
    """A metric of the model at the head of the page."""

    name: str
    value: float
    interval: Interval | None

    @property
    def is_share(self) -> bool:
        """Whether it lies between 0 and 1, so that a scale can show it."""
        interval = self.interval
        return interval is not None and interval.low >= 0 and max(interval.high, self.value) <= 1


@dataclass(frozen=True)
class ListedDialogue:
    """One line of the list of all dialogues."""

    name: str
    seconds: float
    rank: float | None
    scores: Mapping[str, float | None]
    timeline: int | None
    """Index of its timeline, if it has one."""


@dataclass(frozen=True)
class EvaluationPage:
    """Content of the page."""

    title: str
    about: str
    marks: Sequence[str]
    tiles: Sequence[ScoreTile]
    systems: Mapping[str, SliceScores]
    """Overall scores by system, the model first."""
    slices: Mapping[str, SliceScores]
    """The model's scores overall, by data set and by user type."""
    advantage: Mapping[str, Mapping[str, Interval]]
    """By metric and rival, as far as it is defined."""
    charts: Sequence[Chart]
    dialogues: Sequence[ListedDialogue]
    """Lowest rank first."""
    timelines: Sequence[DialogueTimeline]
    rules: Mapping[str, Any]
    notes: Sequence[str] = field(default_factory=list)
    judge: JudgeReport | None = None
    recall_by_label: Mapping[str, Interval] = field(default_factory=dict)
    """The model's: share of the reference's utterances with a label that a correct one meets."""
    pace: str = ""
    """Measured times of a latency-aware run."""

    @property
    def metrics(self) -> list[str]:
        """Those that any slice has."""
        return list(dict.fromkeys(name for scores in self.slices.values() for name in scores.metrics))

    @property
    def columns(self) -> list[str]:
        """Metrics of the tables of systems and dialogues."""
        return [name for name in HEADLINES if any(s.metrics.get(name) is not None for s in self.systems.values())]


def write_page(
    file: Path,
    predictions: Predictions,
    scores: Mapping[str, Scores],
    settings: EvaluationSettings,
    encoder: SentenceEncoder | None,
    advantage: Advantage | None = None,
    judge: JudgeReport | None = None,
    paced: PaceReport | None = None,
    texts: Mapping[str, TextScores] | None = None,
) -> Path:
    """Write the page of an evaluation.

    Args:
        file: where it is written.
        predictions: of all systems; the first is the model, whose timelines are drawn.
        scores: by system.
        settings: how turns and transitions are matched, and `report`.
        encoder: sentence vectors for the turn matcher, as in `evaluate`.
        advantage: difference between the model and its rivals, by metric.
        judge: what a language model says of the systems.
        paced: measured times of the latency-aware run behind the model's decisions.
        texts: scores of the words of correct pairs, by system.
    """
    write_text(file, render(evaluation_page(predictions, scores, settings, encoder, advantage, judge, paced, texts)))
    return file


def evaluation_page(
    predictions: Predictions,
    scores: Mapping[str, Scores],
    settings: EvaluationSettings,
    encoder: SentenceEncoder | None,
    advantage: Advantage | None = None,
    judge: JudgeReport | None = None,
    paced: PaceReport | None = None,
    texts: Mapping[str, TextScores] | None = None,
) -> EvaluationPage:
    """Content of the page; arguments as in `write_page`."""
    lineage, model = predictions.lineage, next(iter(predictions.systems))
    own, spoken = scores[model], (texts or {}).get(model)
    ranked = _ranked(predictions.systems[model], settings, encoder)
    shown, order = _shown(len(ranked), settings)
    thresholds = lineage.rules.get("thresholds", {})
    timelines = [
        dialogue_timeline(video, found, settings, encoder, thresholds.get(video.dialogue.dataset))
        for video, _, found in (ranked[index] for index in shown)
    ]
    by_index = dict(zip(shown, timelines, strict=True))
    note = add_pictures([by_index[index] for index in order], predictions.videos, settings.report)
    for index in shown:
        if index not in order:
            by_index[index].no_pictures = "only the worst and best dialogues have some (evaluation.report)"
    return EvaluationPage(
        title=f"{predictions.manifest.get('run_name', lineage.model)} on {lineage.split}",
        about=f"{lineage.model}: {counted(lineage.dialogues, 'dialogue')} of {lineage.count}",
        marks=[*lineage.marks()],
        tiles=[*_tiles(own.overall)],
        systems={name: each.overall for name, each in scores.items()},
        slices={
            "all": _with_texts(own.overall, spoken.overall if spoken else None),
            **{f"dataset {name}": _with_texts(each, spoken.by_dataset[name] if spoken else None)
               for name, each in own.by_dataset.items()},
            **{f"user type {name}": each for name, each in own.by["user_type"].items()},
            **{f"length {name}": each for name, each in own.by["length"].items()},
        },
        advantage=_defined(advantage or {}),
        charts=charts_of({name: each.curves for name, each in scores.items()}),
        dialogues=[
            ListedDialogue(name_of(video), len(video.frames) / FPS, ranks, found, _place(shown, index))
            for index, (video, ranks, found) in enumerate(ranked)
        ],
        timelines=timelines,
        rules={
            "weights": lineage.weights, "records": lineage.records, "embeddings": lineage.embeddings,
            **flatten(lineage.rules),
        },
        notes=[note] if note else [],
        judge=judge,
        recall_by_label=own.recall_by_label,
        pace=paced.describe() if paced else "",
    )  # fmt: skip


def _tiles(scores: SliceScores) -> Iterator[ScoreTile]:
    for name in HEADLINES:
        if (value := scores.metrics.get(name)) is not None:
            yield ScoreTile(name, value, scores.intervals.get(name))


def _with_texts(scores: SliceScores, texts: SliceScores | None) -> SliceScores:
    if texts is None:
        return scores
    return replace(scores, metrics=scores.metrics | texts.metrics, intervals=scores.intervals | texts.intervals)


def _defined(advantage: Advantage) -> dict[str, dict[str, Interval]]:
    found = {
        metric: {rival: interval for rival, interval in rivals.items() if interval is not None}
        for metric, rivals in advantage.items()
    }
    return {metric: rivals for metric, rivals in found.items() if rivals}


Ranked = tuple[VideoDecisions, float | None, Mapping[str, float | None]]
"""A dialogue with its rank and its scores."""


def _ranked(videos: Sequence[VideoDecisions], settings: EvaluationSettings, encoder: Any) -> list[Ranked]:
    """All dialogues, lowest rank first; those without a rank last."""
    found = []
    for video in videos:
        scores = scores_of([video], settings, encoder)
        found.append((video, rank(scores), scores))
    return sorted(found, key=lambda each: (each[1] is None, each[1] or 0.0, name_of(each[0])))


def _ranked_by(rows: Iterable[Mapping[str, float | None]]) -> str:
    """`content F1 and joint goal accuracy`: what ranks these dialogues or videos."""
    used = {name for row in rows for name in ranked_by(row)}
    parts = ([words(name) for name in names if name in used] for names in RANKED_BY)
    return " and ".join(" or ".join(part) for part in parts if part)


def _shown(total: int, settings: EvaluationSettings) -> tuple[list[int], list[int]]:
    """(dialogues with a timeline, in order of rank; those with pictures, worst and best in turn)."""
    report = settings.report
    worst = list(range(min(report.worst, total)))
    best = [index for index in range(total - 1, max(total - report.best, 0) - 1, -1) if index not in worst]
    pictured = [index for pair in _alternate(worst, best) for index in pair][: report.timelines]
    others = [index for index in range(total) if index not in pictured][: report.timelines - len(pictured)]
    return sorted([*pictured, *others]), pictured


def _alternate(first: Sequence[int], second: Sequence[int]) -> Iterator[Sequence[int]]:
    for index in range(max(len(first), len(second))):
        yield [*first[index : index + 1], *second[index : index + 1]]


def _place(shown: Sequence[int], index: int) -> int | None:
    return shown.index(index) if index in shown else None


def render(page: EvaluationPage) -> str:
    """The page as HTML."""
    return environment().get_template("evaluation.html").render(page=page)


def environment() -> jinja2.Environment:
    """Templates of the pages on evaluations, which share the style of the page on labels."""
    made = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader("prospect.reports.evaluation"), jinja2.PackageLoader("prospect.reports.preview")]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {"clock": clock, "words": words, "number": number, "signed": signed}
    made.filters |= filters | {"percent": lambda share: f"{100 * share:.4f}%"}
    made.globals |= {
        "fps": FPS,
        "overview": OVERVIEW,
        "chart_size": (WIDTH, HEIGHT),
        "ranked_by": _ranked_by,
        "criteria": CRITERIA,
    }
    return made
