"""Two evaluations side by side: differences by metric, with paired bootstrap intervals, and by video."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from prospect.errors import DataError
from prospect.evaluation.intervals import Interval
from prospect.evaluation.lineage import Lineage, counted
from prospect.evaluation.measures.turns import said
from prospect.evaluation.metrics import evaluate, paired_intervals
from prospect.evaluation.predictions import Predictions
from prospect.evaluation.records import VideoDecisions
from prospect.evaluation.settings import EvaluationSettings
from prospect.evaluation.text_intervals import paired_text_intervals, score_texts
from prospect.settings import flatten
from prospect.similarity import SentenceEncoder

RANKED_BY = (("content_f1", "turn_f1"), ("joint_goal_accuracy",))
"""The rank of a dialogue or video is the mean of the first of each that is defined: words count by their content where
a corpus tells it, else by their likeness."""

_LOWER_IS_BETTER = ("missing", "redundant", "diff", "error", "illegal", "dead_time")
_NEITHER = ("per_minute", "latency", "naming_rate")
"""Parts of names: of these metrics neither more nor less is better."""


@dataclass(frozen=True)
class MetricDifference:
    """One metric of two evaluations."""

    name: str
    first: float | None
    second: float | None
    interval: Interval | None
    """Of second less first, each draw taking the same videos of both; None where undefined."""

    @property
    def is_certain(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval is not None and not self.interval.low <= 0 <= self.interval.high

    @property
    def verdict(self) -> str:
        """`better` or `worse`, of the second, where the difference is certain and the metric has a good side."""
        if not self.is_certain or self.interval is None or any(part in self.name for part in _NEITHER):
            return ""
        rises = self.interval.value > 0
        return "better" if rises != any(part in self.name for part in _LOWER_IS_BETTER) else "worse"


@dataclass(frozen=True)
class VideoDifference:
    """The scores of one video in two evaluations."""

    video: str
    first: Mapping[str, float | None]
    second: Mapping[str, float | None]

    @property
    def difference(self) -> float | None:
        """Rank in the second less rank in the first."""
        before, after = rank(self.first), rank(self.second)
        return None if before is None or after is None else after - before


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same dialogues."""

    first: Predictions
    second: Predictions
    metrics: Sequence[MetricDifference]
    videos: Sequence[VideoDifference]
    """Those that the second has got worst first."""
    rules: Mapping[str, tuple[Any, Any]]
    """Settings that differ."""


def rank(scores: Mapping[str, float | None]) -> float | None:
    """The mean of the scores that `ranked_by` names; None without any."""
    defined = [scores[name] or 0.0 for name in ranked_by(scores)]
    return fmean(defined) if defined else None


def ranked_by(scores: Mapping[str, float | None]) -> list[str]:
    """Names of the scores that rank a dialogue or video."""
    defined = ([name for name in names if scores.get(name) is not None] for names in RANKED_BY)
    return [names[0] for names in defined if names]


def scores_of(
    videos: Sequence[VideoDecisions], settings: EvaluationSettings, encoder: SentenceEncoder | None
) -> dict[str, float | None]:
    """The metrics of a few dialogues, without intervals; where nobody speaks, turn F1 is undefined instead of 0."""
    metrics = evaluate(videos, settings.model_copy(update={"bootstrap_samples": 1}), encoder).overall.metrics
    silent = not any(said(video, settings) or video.reference_utterances for video in videos)
    return metrics | ({"turn_f1": None} if silent else {})


def require_same_data(first: Predictions, second: Predictions) -> None:
    """Raise a DataError unless both were scored on the same dialogues."""
    if first.lineage.records != second.lineage.records:
        told = " and ".join(
            f"{counted(each.dialogues, 'dialogue')} of {each.split} (records {each.records})"
            for each in (first.lineage, second.lineage)
        )
        raise DataError(f"`compare`: the results are of different data, {told}; evaluate both on one", field="compare")


def compare(
    first: Predictions, second: Predictions, settings: EvaluationSettings, encoder: SentenceEncoder | None
) -> Comparison:
    """Score the models of two evaluations by the same rules, and compare them.

    Args:
        first: the one to compare with.
        second: the one that may be better.
        settings: rules by which both are scored.
        encoder: sentence vectors for the turn matcher, as in `evaluate`.

    Raises:
        DataError: they are of different data.
    """
    require_same_data(first, second)
    models = [next(iter(each.systems.values())) for each in (first, second)]
    scores = [evaluate(videos, settings, encoder) for videos in models]
    differences = paired_intervals(scores[1], scores[0], settings)
    differences |= paired_text_intervals(scores[1], scores[0], settings)
    known = [found.overall.metrics | score_texts(found, settings).overall.metrics for found in scores]
    by_video = [_by_video(videos, settings, encoder) for videos in models]
    videos = [VideoDifference(name, found, by_video[1][name]) for name, found in by_video[0].items()]
    rules = [_rules(each.lineage) for each in (first, second)]
    return Comparison(
        first,
        second,
        metrics=[MetricDifference(name, known[0][name], known[1][name], differences[name]) for name in known[0]],
        videos=sorted(videos, key=lambda each: (each.difference is None, each.difference or 0.0, each.video)),
        rules={
            key: (rules[0].get(key), rules[1].get(key))
            for key in dict.fromkeys([*rules[0], *rules[1]])
            if rules[0].get(key) != rules[1].get(key)
        },
    )


def _rules(lineage: Lineage) -> dict[str, Any]:
    """Everything that the scores of a model depend on, beside the model and the dialogues."""
    pace = flatten({"paced": dict(lineage.paced)}) if lineage.paced is not None else {}
    return flatten(lineage.rules) | {"embeddings": lineage.embeddings} | pace


def _by_video(
    videos: Sequence[VideoDecisions], settings: EvaluationSettings, encoder: SentenceEncoder | None
) -> dict[str, Mapping[str, float | None]]:
    groups: dict[str, list[VideoDecisions]] = defaultdict(list)
    for video in videos:
        groups[video.video].append(video)
    return {name: scores_of(group, settings, encoder) for name, group in groups.items()}
