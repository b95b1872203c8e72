"""Scores of the words of correct pairs with intervals over videos: overall, and by data set."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from prospect.evaluation.counted import CountedDialogue, Draws
from prospect.evaluation.intervals import Interval, percentile_interval
from prospect.evaluation.metrics import Scores, SliceScores, Values, mean_over_datasets, slice_of
from prospect.evaluation.settings import EvaluationSettings
from prospect.evaluation.tally import Floats, Tally
from prospect.evaluation.text_metrics import METRICS, score_names, sum_pairs


@dataclass(frozen=True)
class TextScores:
    """Scores by full name, which says library and tokenizer; without `counts`."""

    overall: SliceScores
    macro: SliceScores
    """The means over data sets; each data set draws its own videos."""
    by_dataset: dict[str, SliceScores]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; an undefined score is null."""
        by = {name: _plain(scores) for name, scores in self.by_dataset.items()}
        return {"overall": _plain(self.overall), "macro": _plain(self.macro), "by": {"dataset": by}}


def score_texts(scores: Scores, settings: EvaluationSettings) -> TextScores:
    """Score the correct pairs of an evaluation.

    The draws are those of all other metrics. CIDEr-D keeps the weights of n-grams that all pairs of a slice give it:
    they depend on every reference at once, and are no sum over videos.
    """
    datasets = {
        name: _drawn([one for one in scores.counted if one.video.dialogue.dataset == name], settings)
        for name in scores.by_dataset
    }
    parts = [*datasets.values()]
    overall = parts[0] if len(parts) == 1 else _drawn(scores.counted, settings)
    values, draws = zip(*(parts or [overall]), strict=True)
    return TextScores(
        slice_of(*overall, settings),
        slice_of(mean_over_datasets(values), mean_over_datasets(draws), settings),
        {name: slice_of(*drawn, settings) for name, drawn in datasets.items()},
    )


def paired_text_intervals(first: Scores, second: Scores, settings: EvaluationSettings) -> dict[str, Interval | None]:
    """By how much `first` is better than `second`, by full name; both were scored on the same videos."""
    (value, drawn), (other, others) = (_drawn(scores.counted, settings) for scores in (first, second))
    return {
        name: percentile_interval(value[name][0] - other[name][0], drawn[name] - others[name], settings.confidence)
        for name in value
    }


def _drawn(counted: Sequence[CountedDialogue], settings: EvaluationSettings) -> tuple[Values, Values]:
    """The scores of dialogues, and of the draws of their videos."""
    names = score_names()
    if not counted:
        nothing = {name: np.full(1, np.nan) for name in names.values()}
        return nothing, nothing
    tallies = [Tally.of(sums) for sums in sum_pairs([one.pairs for one in counted])]
    columns = np.stack([tally.columns() for tally in tallies])

    def values(weights: Floats) -> Values:
        tally = Tally.from_columns(tallies[0].names, weights @ columns)
        return {names[short]: metric(tally) for short, metric in METRICS.items()}

    drawn = Draws.of_videos(counted, settings.bootstrap_samples, settings.seed)
    return values(Draws.whole(counted).weights), values(drawn.weights)


def _plain(scores: SliceScores) -> dict[str, Any]:
    return {name: value for name, value in asdict(scores).items() if name != "counts"}
