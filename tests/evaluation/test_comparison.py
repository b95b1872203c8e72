"""Two evaluations side by side: what differs for certain, in which videos, and by which rules."""

from dataclasses import replace

import pytest

from prospect.errors import DataError
from prospect.evaluation.baselines import oracle, oracle_shifted, silence
from prospect.evaluation.comparison import Comparison, MetricDifference, compare, rank
from prospect.evaluation.intervals import Interval
from prospect.evaluation.predictions import Predictions
from prospect.evaluation.settings import EvaluationSettings
from tests.evaluation.test_lineage import LINEAGE

SETTINGS = EvaluationSettings(bootstrap_samples=200)


def predictions(system, references, **lineage) -> Predictions:
    videos = [system(*reference) for reference in references]
    return Predictions(replace(LINEAGE, **lineage), {"run_name": system.__name__}, {"trained model": videos}, {})


def compared(first, second, references, words) -> Comparison:
    return compare(predictions(first, references), predictions(second, references), SETTINGS, words)


def test_a_model_does_not_differ_from_itself(references, words) -> None:
    found = compared(oracle_shifted, oracle_shifted, references, words)
    assert not any(row.is_certain for row in found.metrics)
    assert {row.interval.value for row in found.metrics if row.interval} == {0.0}
    assert not found.rules
    assert any(row.name.startswith("bleu4 (sacrebleu ") and row.interval for row in found.metrics)


def test_the_oracle_is_better_than_silence_wherever_a_metric_has_a_good_side(references, words) -> None:
    verdicts = {row.name: row.verdict for row in compared(silence, oracle, references, words).metrics}
    assert {verdicts[name] for name in ("turn_f1", "dst_f1", "joint_goal_accuracy", "missing_rate")} == {"better"}
    assert verdicts["utterances_per_minute"] == ""
    back = {row.name: row.verdict for row in compared(oracle, silence, references, words).metrics}
    assert (back["turn_f1"], back["missing_rate"]) == ("worse", "worse")


def test_videos_come_in_the_order_of_what_was_lost(references, words) -> None:
    half = [oracle(*reference) if index else silence(*reference) for index, reference in enumerate(references)]
    second = Predictions(LINEAGE, {}, {"trained model": half}, {})
    found = compare(predictions(oracle, references), second, SETTINGS, words)
    assert found.videos[0].video == "sample/tea"
    assert found.videos[0].difference < -0.8
    assert [each.difference for each in found.videos[1:]] == [0.0, 0.0, None], "in one nothing happens"


def test_a_rank_is_of_content_where_the_corpus_has_it() -> None:
    scores = {"turn_f1": 1.0, "content_f1": 0.2, "joint_goal_accuracy": 0.6}
    assert rank(scores) == pytest.approx(0.4)
    assert rank({**scores, "content_f1": None}) == pytest.approx(0.8)
    assert rank({**scores, "content_f1": 0.0, "joint_goal_accuracy": None}) == 0.0
    assert rank({}) is None


def test_rules_that_differ_are_named(references, words) -> None:
    rules = {"context": {"strategy": "drop_all"}, "same": 1}
    first = predictions(oracle, references, rules={"context": {"strategy": "none"}, "same": 1})
    found = compare(first, predictions(oracle, references, rules=rules, embeddings="other"), SETTINGS, words)
    assert found.rules == {"context.strategy": ("none", "drop_all"), "embeddings": (LINEAGE.embeddings, "other")}


def test_the_pace_is_a_rule_that_may_differ(references, words) -> None:
    paced = predictions(oracle, references, paced={"speed": 2, "sessions": 1})
    assert compare(predictions(oracle, references), paced, SETTINGS, words).rules == {
        "paced.speed": (None, 2),
        "paced.sessions": (None, 1),
    }
    assert not compare(paced, paced, SETTINGS, words).rules


def test_results_of_other_data_are_refused_in_a_sentence(references, words) -> None:
    other = predictions(oracle, references[:1], records="others", split="validation")
    with pytest.raises(DataError, match=r"^`compare`: the results are of different data, .* of test .* and .*others"):
        compare(predictions(oracle, references), other, SETTINGS, words)


@pytest.mark.parametrize(
    ("name", "low", "high", "verdict"),
    [
        ("turn_f1", 0.1, 0.3, "better"),
        ("turn_f1", -0.1, 0.3, ""),
        ("turn_f1", 0.0, 0.3, ""),
        ("redundant_rate", 0.1, 0.3, "worse"),
        ("speak_calibration_error", -0.3, -0.1, "better"),
        ("dst_latency", 0.1, 0.3, ""),
        ("step_naming_rate", 0.1, 0.3, ""),
        ("step_correctness", 0.1, 0.3, "better"),
    ],
)
def test_a_verdict_needs_an_interval_without_zero_and_a_good_side(name, low, high, verdict) -> None:
    assert MetricDifference(name, 0.5, 0.7, Interval((low + high) / 2, low, high)).verdict == verdict
