"""Scores of words with intervals over videos, by data set and of two systems."""

import pytest

from prospect.evaluation.baselines import oracle, silence
from prospect.evaluation.metrics import Scores, evaluate
from prospect.evaluation.settings import EvaluationSettings
from prospect.evaluation.text_intervals import paired_text_intervals, score_texts
from prospect.evaluation.text_metrics import score_names, text_scores
from tests.evaluation.measures.test_turns import saying

SETTINGS = EvaluationSettings(bootstrap_samples=100)
BLEU1 = score_names()["bleu1"]


@pytest.fixture(scope="module")
def scores(references, words) -> Scores:
    """In one video a sentence has another last word."""
    tea, *others = references
    return evaluate([saying(tea, f17="drop teabag inside cup"), *map_oracle(others)], SETTINGS, words)


def map_oracle(references):
    return [oracle(*reference) for reference in references]


def test_values_are_those_of_all_pairs_and_an_interval_holds_each(scores) -> None:
    found = score_texts(scores, SETTINGS)
    assert found.overall.metrics == pytest.approx(text_scores(scores.pairs))
    interval = found.overall.intervals[BLEU1]
    assert interval.low < interval.value < interval.high == pytest.approx(1.0)


def test_each_data_set_has_its_own_and_macro_is_their_mean(scores) -> None:
    found = score_texts(scores, SETTINGS)
    by = {name: each[BLEU1] for name, each in found.by_dataset.items()}
    assert by == pytest.approx({"assembly101": 1.0, "sample": 13 / 14, "wtag": 1.0})
    assert found.macro[BLEU1] == pytest.approx((2 + 13 / 14) / 3)
    assert found.to_dict()["by"]["dataset"]["wtag"]["intervals"][BLEU1]["high"] == pytest.approx(1.0)


def test_without_pairs_nothing_is_defined(references, words) -> None:
    silent = score_texts(evaluate([silence(*reference) for reference in references], SETTINGS, words), SETTINGS)
    assert {*silent.overall.metrics.values(), *silent.macro.metrics.values()} == {None}
    assert {*silent.overall.intervals.values()} == {None}
    assert {*score_texts(evaluate([], SETTINGS), SETTINGS).overall.metrics.values()} == {None}


def test_two_systems_are_compared_draw_by_draw(scores, references, words) -> None:
    best = evaluate(map_oracle(references), SETTINGS, words)
    difference = paired_text_intervals(best, scores, SETTINGS)[BLEU1]
    assert difference.value == pytest.approx(1 - score_texts(scores, SETTINGS).overall[BLEU1])
    assert difference.low == pytest.approx(0.0)
    assert {(each.low, each.high) for each in paired_text_intervals(best, best, SETTINGS).values()} == {(0.0, 0.0)}
