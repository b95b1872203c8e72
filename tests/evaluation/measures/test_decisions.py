"""When the system acts, and what its probabilities are worth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from prospect.evaluation.baselines import oracle, oracle_shifted, silence
from prospect.evaluation.measures import decisions
from prospect.evaluation.measures.decisions import Readings, rank, weighted_quantile
from prospect.evaluation.metrics import evaluate
from prospect.evaluation.settings import EvaluationSettings

SETTINGS = EvaluationSettings(bootstrap_samples=50)


def readings(probabilities, labels):
    return Readings(np.array(probabilities, float), np.array(labels, bool), np.zeros(0))


def test_a_frame_late_is_no_frame_right_and_every_event(tea, words):
    scores = evaluate([oracle_shifted(*tea)], SETTINGS, words).overall
    for head in ("speak", "update"):
        assert (scores[f"{head}_frame_f1"], scores[f"{head}_event_f1"]) == (0.0, 1.0)
        assert (scores[f"{head}_latency_p50"], scores[f"{head}_latency_p90"]) == (0.5, 0.5)


def test_half_of_the_acts_early_and_half_late(tea, words):
    dialogue, timeline = tea
    early, late = oracle_shifted(*tea, frames=-4), oracle_shifted(*tea, frames=2)
    other = late.__class__(dialogue.model_copy(update={"dialogue_id": "again"}), timeline, late.decisions)
    scores = evaluate([early, other], SETTINGS, words).overall
    assert (scores["speak_latency_p50"], scores["speak_latency_p90"]) == (-2.0, 1.0)


def test_silence_ranks_nothing_and_is_undefined_in_time(tea, quiet, words):
    scores = evaluate([silence(*tea)], SETTINGS, words).overall
    assert (scores["speak_event_recall"], scores["speak_latency_p50"]) == (0.0, None)
    assert scores["speak_roc_auc"] == 0.5, "all frames alike"
    assert scores["speak_calibration_error"] == pytest.approx(4 / 80), "certain of silence, wrong at four frames"
    nothing = evaluate([oracle(*quiet)], SETTINGS, words).overall
    assert nothing["speak_event_f1"] is nothing["speak_roc_auc"] is nothing["update_frame_precision"] is None


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.875, 1.0]), st.booleans()), min_size=2, max_size=40)
)
def test_ranking_scores_are_those_of_scikit_learn(frames):
    probabilities, labels = (np.array(part) for part in zip(*frames, strict=True))
    counts = rank([readings(probabilities, labels)], np.ones((1, 1)))
    if labels.any():
        expected = average_precision_score(labels, probabilities)
        assert decisions.average_precision(counts)[0] == pytest.approx(expected)
    if 0 < labels.sum() < len(labels):
        assert decisions.roc_auc(counts)[0] == pytest.approx(roc_auc_score(labels, probabilities))


@given(st.lists(st.integers(0, 3), min_size=3, max_size=3), st.randoms(use_true_random=False))
def test_a_draw_weighs_a_dialogue_as_often_as_it_was_drawn(times, random):
    videos = [readings([random.random() for _ in range(5)], [random.random() < 0.4 for _ in range(5)]) for _ in times]
    drawn = rank(videos, np.array([times], float))
    copies = rank([v for v, n in zip(videos, times, strict=True) for _ in range(n)] or [readings([], [])],
                  np.ones((1, max(1, sum(times)))))  # fmt: skip
    for metric in (decisions.average_precision, decisions.roc_auc, decisions.calibration_error):
        assert metric(drawn)[0] == pytest.approx(metric(copies)[0], nan_ok=True)


def test_calibration_error_and_its_diagram():
    """Two bins: 0.2 where a quarter acts, 0.9 where all do: (4 |0.25 - 0.2| + 2 |1 - 0.9|) / 6."""
    counts = rank([readings([0.2] * 4 + [0.9] * 2, [1, 0, 0, 0, 1, 1])], np.ones((1, 1)))
    assert decisions.calibration_error(counts)[0] == pytest.approx((4 * 0.05 + 2 * 0.1) / 6)
    low, high = decisions.reliability(counts)
    assert low == pytest.approx({"probability": 0.2, "positives": 0.25, "frames": 4})
    assert high == pytest.approx({"probability": 0.9, "positives": 1.0, "frames": 2})


def test_quantiles_of_weighted_values():
    values = np.array([-1.0, 0.0, 2.0])
    weights = np.array([[1, 1, 1], [0, 0, 5], [3, 0, 1], [0, 0, 0]], float)
    assert weighted_quantile(values, weights, 0.5).tolist()[:3] == [0.0, 2.0, -1.0]
    assert np.isnan(weighted_quantile(values, weights, 0.9)[3])
