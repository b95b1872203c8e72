"""Scores of streamed dialogues against their references, with intervals over videos.

What is counted and how it becomes a metric stands in `prospect.evaluation.measures`, one module for each subject.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from prospect.dialogue.timeline import FPS
from prospect.errors import DataError
from prospect.evaluation.counted import CountedDialogue, Draws
from prospect.evaluation.intervals import Interval, percentile_interval
from prospect.evaluation.measures import decisions, states, transitions, turns, wording
from prospect.evaluation.measures.turns import correct_pairs, match_video, said
from prospect.evaluation.records import VideoDecisions
from prospect.evaluation.settings import EvaluationSettings
from prospect.evaluation.tally import Floats, Ratio, Tally
from prospect.similarity import SentenceEncoder

METRICS: dict[str, Ratio] = turns.METRICS | wording.METRICS | transitions.METRICS | states.METRICS | decisions.METRICS
"""Ratios of sums."""

LATENCIES = {"latency_p50": 0.5, "latency_p90": 0.9}
"""Quantiles of signed latencies, in seconds."""
SAMPLED = tuple(f"{head}_{name}" for head in decisions.HEADS for name in [*decisions.RANKED, *LATENCIES])
"""Metrics of single frames and events: of the probabilities of both heads, and of latencies."""

LENGTHS = ((1, "under 1 minute"), (5, "1 to 5 minutes"), (20, "5 to 20 minutes"), (np.inf, "over 20 minutes"))


@dataclass(frozen=True)
class SliceScores:
    """The scores of some dialogues; `scores["turn_f1"]` is one metric."""

    metrics: dict[str, float | None]
    """All of `METRICS` and `SAMPLED`; None where undefined."""
    intervals: dict[str, Interval | None]
    """Over videos, by metric."""
    counts: dict[str, float] = field(default_factory=dict)
    """The sums behind the ratios."""

    def __getitem__(self, metric: str) -> float | None:
        return self.metrics[metric]


@dataclass(frozen=True)
class Scores:
    """The result of an evaluation."""

    overall: SliceScores
    macro: SliceScores
    """The means over data sets, as in ProAssist's tables; each data set draws its own videos."""
    by: dict[str, dict[str, SliceScores]]
    """`dataset`, `user_type` and `length` -> its values -> scores."""
    recall_by_label: dict[str, Interval]
    """Share of the reference's utterances with a label that a correct one meets."""
    curves: dict[str, Any]
    """Points of plots: `similarity`, `tolerance`, and by head `reliability` and `precision_recall`."""
    counted: tuple[CountedDialogue, ...] = ()
    """What was counted, from which systems are compared pair by pair."""

    @property
    def by_dataset(self) -> dict[str, SliceScores]:
        return self.by["dataset"]

    @property
    def videos(self) -> dict[str, Tally]:
        """Sums by video."""
        return {name: Tally.total(tallies) for name, tallies in _grouped(self.counted).items()}

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Correct pairs of texts (system's, reference's)."""
        return [pair for one in self.counted for pair in one.pairs]

    def logged(self) -> dict[str, float]:
        """The defined overall metrics by stable name, for a tracker."""
        return {name: value for name, value in self.overall.metrics.items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; an undefined metric is null."""
        return {
            "overall": asdict(self.overall),
            "macro": asdict(self.macro),
            "by": {key: {name: asdict(scores) for name, scores in found.items()} for key, found in self.by.items()},
            "recall_by_label": {label: asdict(interval) for label, interval in self.recall_by_label.items()},
            "curves": self.curves,
            "videos": {
                name: {metric: number(function(tally)) for metric, function in METRICS.items()}
                for name, tally in self.videos.items()
            },
        }


def evaluate(
    videos: Sequence[VideoDecisions], settings: EvaluationSettings | None = None, encoder: SentenceEncoder | None = None
) -> Scores:
    """Count every dialogue once and sum up: overall, and by data set, user type and length.

    Args:
        videos: the streamed dialogues, in any order.
        settings: the evaluation section.
        encoder: sentence vectors for the turn matcher; may be missing where no system utterance meets
            a reference with one, as in a comparison of states.

    Raises:
        DataError: utterances must be matched, and `encoder` is missing.
    """
    settings = settings or EvaluationSettings()
    videos = sorted(videos, key=lambda video: (video.video, video.dialogue.dialogue_id))
    known = wording.Wording.of(videos, encoder)
    counted = tuple(_count(video, settings, encoder, known) for video in videos)

    def by(key: Callable[[VideoDecisions], str]) -> dict[str, SliceScores]:
        names = sorted({key(video) for video in videos})
        return {name: _slice([one for one in counted if key(one.video) == name], settings) for name in names}

    datasets = sorted({video.dialogue.dataset for video in videos})
    parts = [_drawn([one for one in counted if one.video.dialogue.dataset == name], settings) for name in datasets]
    values, draws = zip(*(parts or [_drawn([], settings)]), strict=True)
    overall = _drawn(counted, settings)
    return Scores(
        overall=slice_of(*overall, settings, Draws.whole(counted).tally),
        macro=slice_of(mean_over_datasets(values), mean_over_datasets(draws), settings),
        by={
            "dataset": by(lambda video: video.dialogue.dataset),
            "user_type": by(lambda video: video.dialogue.user_type or "unknown"),
            "length": by(_length),
        },
        recall_by_label=_label_recall(counted, settings),
        curves=_curves(Draws.whole(counted)),
        counted=counted,
    )


def paired_intervals(
    first: Scores, second: Scores, settings: EvaluationSettings | None = None
) -> dict[str, Interval | None]:
    """By how much `first` is better than `second`, by metric, each draw taking the same videos of both.

    None where a metric is undefined for either.

    Raises:
        DataError: the two were not scored on the same videos.
    """
    settings = settings or EvaluationSettings()
    names = [{one.video.video for one in scores.counted} for scores in (first, second)]
    if names[0] != names[1]:
        only = sorted(names[0] ^ names[1])[0]
        raise DataError(f"scores: video {only!r} was scored for one of the two systems only", field="videos")
    (value, drawn), (other, others) = (_drawn(scores.counted, settings) for scores in (first, second))
    return {
        name: percentile_interval(value[name][0] - other[name][0], drawn[name] - others[name], settings.confidence)
        for name in value
    }


def average_precision(probabilities: Sequence[float], labels: Sequence[bool]) -> float | None:
    """Area under precision over recall, each distinct probability one threshold; None without a positive label."""
    readings = decisions.Readings(np.asarray(probabilities, float), np.asarray(labels, bool), np.zeros(0))
    return number(decisions.average_precision(decisions.rank([readings], np.ones((1, 1))))[0])


def number(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)


def _count(
    video: VideoDecisions,
    settings: EvaluationSettings,
    encoder: SentenceEncoder | None,
    known: wording.Wording,
) -> CountedDialogue:
    frames, matches = video.frames, match_video(video, settings, encoder)
    sums = {
        "dialogues": 1,
        "frames": len(frames),
        "undecided": sum(frame not in video.by_frame for frame in frames),
        "seconds": len(frames) / FPS,
        **turns.count_turns(video, matches, settings, encoder),
        **known.count(video, settings),
        **transitions.count_transitions(video, settings),
        **states.count_states(video, settings),
        **decisions.count_decisions(video, settings),
    }
    correct = correct_pairs(matches, settings)
    texts, reference = said(video, settings), video.reference_utterances
    met = {pair.reference for pair in correct}
    return CountedDialogue(
        video=video,
        tally=Tally.of(sums),
        readings=decisions.read_decisions(video, settings),
        labels=turns.count_labels(video, met),
        pairs=tuple((texts[pair.generated], reference[pair.reference]) for pair in correct),
    )


Values = dict[str, Floats]
"""By metric, [B]."""


def _values(draws: Draws) -> Values:
    """All metrics."""
    ratios = {name: metric(draws.tally) for name, metric in METRICS.items()}
    parts = [_sampled(part) for part in draws.parts()]
    return ratios | {name: np.concatenate([part[name] for part in parts]) for name in SAMPLED}


def _sampled(draws: Draws) -> Values:
    found: Values = {}
    for head in decisions.HEADS:
        ranked, latencies = draws.ranked(head), draws.latencies(head)
        found |= {f"{head}_{name}": metric(ranked) for name, metric in decisions.RANKED.items()}
        found |= {f"{head}_{name}": decisions.weighted_quantile(*latencies, q) for name, q in LATENCIES.items()}
    return found


def _drawn(counted: Sequence[CountedDialogue], settings: EvaluationSettings) -> tuple[Values, Values]:
    """All metrics of dialogues, and of the draws of their videos."""
    if not counted:
        nothing = {name: np.full(1, np.nan) for name in [*METRICS, *SAMPLED]}
        return nothing, nothing
    drawn = Draws.of_videos(counted, settings.bootstrap_samples, settings.seed)
    return _values(Draws.whole(counted)), _values(drawn)


def _slice(counted: Sequence[CountedDialogue], settings: EvaluationSettings) -> SliceScores:
    return slice_of(*_drawn(counted, settings), settings, Draws.whole(counted).tally)


def slice_of(value: Values, drawn: Values, settings: EvaluationSettings, tally: Tally | None = None) -> SliceScores:
    """Scores from values [1] and the draws of each."""
    return SliceScores(
        metrics={name: number(found[0]) for name, found in value.items()},
        intervals={
            name: percentile_interval(value[name][0], found, settings.confidence) for name, found in drawn.items()
        },
        counts={name: float(tally[name][0]) for name in tally.names} if tally is not None else {},
    )


def mean_over_datasets(values: Sequence[Values]) -> Values:
    """By metric, the mean over data sets in which it is defined."""
    return {name: _defined_mean(np.stack([found[name] for found in values])) for name in values[0]}


def _defined_mean(values: Floats) -> Floats:
    defined = ~np.isnan(values)
    count = defined.sum(axis=0)
    total = np.where(defined, values, 0.0).sum(axis=0)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def _length(video: VideoDecisions) -> str:
    minutes = len(video.frames) / FPS / 60
    return next(name for most, name in LENGTHS if minutes < most)


def _label_recall(counted: Sequence[CountedDialogue], settings: EvaluationSettings) -> dict[str, Interval]:
    labels = sorted({label for one in counted for label in one.labels})
    weights = (
        Draws.of_videos(counted, settings.bootstrap_samples, settings.seed).weights if counted else np.zeros((0, 0))
    )
    found = {}
    for label in labels:
        sums = np.array([one.labels.get(label, (0, 0)) for one in counted], dtype=np.float64)
        due, met = np.moveaxis(weights @ sums, -1, 0)
        drawn = np.divide(met, due, out=np.full(due.shape, np.nan), where=due > 0)
        interval = percentile_interval(sums[:, 1].sum() / sums[:, 0].sum(), drawn, settings.confidence)
        if interval is not None:
            found[label] = interval
    return found


def _curves(whole: Draws) -> dict[str, Any]:
    if not whole.counted:
        return {}
    tally = Tally({name: whole.tally[name][0] for name in whole.tally.names})
    return {
        "similarity": turns.similarity_curve(tally),
        "tolerance": turns.tolerance_curve(tally),
        "reliability": {head: decisions.reliability(whole.ranked(head)) for head in decisions.HEADS},
        "precision_recall": {head: decisions.precision_recall_curve(whole.ranked(head)) for head in decisions.HEADS},
    }


def _grouped(counted: Iterable[CountedDialogue]) -> dict[str, list[Tally]]:
    groups: dict[str, list[Tally]] = defaultdict(list)
    for one in counted:
        groups[one.video.video].append(one.tally)
    return dict(sorted(groups.items()))
