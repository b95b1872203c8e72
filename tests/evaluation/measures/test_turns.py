"""Utterances by similarity, by tolerance, by label, and the silence behind a missed one."""

from dataclasses import replace

import pytest

from prospect.evaluation.baselines import oracle, oracle_shifted, silence
from prospect.evaluation.metrics import evaluate
from prospect.evaluation.records import VideoDecisions
from prospect.evaluation.settings import EvaluationSettings
from tests.factories import timeline_of

SETTINGS = EvaluationSettings(bootstrap_samples=50)


def saying(reference, **texts):
    """The oracle, with other words where `texts` names a frame: f5="...", None for silence."""
    said = {int(name[1:]): text for name, text in texts.items()}
    kept = [replace(d, utterance=said.get(d.frame, d.utterance)) for d in oracle(*reference).decisions]
    return VideoDecisions(*reference, kept)


def test_the_similarity_curve_falls_where_an_utterance_stops_being_alike(tea, words):
    """Of four utterances one shares two of three and two words with its reference: 2 / sqrt(6) = 0.816."""
    scores = evaluate([saying(tea, f5="boil water now")], SETTINGS, words)
    curve = dict(scores.curves["similarity"])
    assert (curve[0.5], curve[0.8]) == (1.0, 1.0)
    assert (curve[0.85], curve[0.95]) == (0.75, 0.75)
    assert scores.overall["turn_f1_area"] == pytest.approx((7 * 1.0 + 3 * 0.75) / 10)
    assert scores.overall["verbatim_rate"] == 0.75


@pytest.mark.parametrize(
    ("frames", "within"), [(0, (1, 1, 1, 1)), (-2, (0, 1, 1, 1)), (4, (0, 0, 1, 1)), (6, (0, 0, 0, 1))]
)
def test_accuracy_counts_utterances_within_a_tolerance(frames, within, toy, words):
    scores = evaluate([oracle_shifted(*toy, frames=frames)], SETTINGS, words)
    assert tuple(accuracy for _, accuracy in scores.curves["tolerance"]) == within
    assert scores.overall["accuracy_within_2s"] == within[2]


def test_a_missed_utterance_leaves_the_user_waiting_until_the_next(tea, words):
    assert evaluate([oracle(*tea)], SETTINGS, words).overall["dead_time"] == 0
    assert evaluate([silence(*tea)], SETTINGS, words).overall["dead_time"] == 75 / 80, "from frame 5 on"
    assert evaluate([saying(tea, f5=None)], SETTINGS, words).overall["dead_time"] == 12 / 80, "until frame 17"


def test_a_sentence_that_is_said_twice_has_the_labels_of_each_turn(tea, words):
    dialogue, _ = tea
    turns = [turn.model_copy(update={"text": "go on", "labels": "feedback"}) for turn in dialogue.turns]
    turns[0] = turns[0].model_copy(update={"labels": "instruction"})
    twice = dialogue.model_copy(update={"turns": tuple(turns)})
    found = evaluate([saying((twice, timeline_of(twice)), f5=None)], SETTINGS, words).recall_by_label
    assert {label: interval.value for label, interval in found.items()} == {"feedback": 1.0, "instruction": 0.0}


def test_recall_by_label_of_the_reference(tea, words):
    dialogue, _ = tea
    labels = ("initiative|instruction", "initiative|instruction,feedback", "", "responsive|feedback")
    turns = tuple(turn.model_copy(update={"labels": label}) for turn, label in zip(dialogue.turns, labels, strict=True))
    labelled = dialogue.model_copy(update={"turns": turns})
    found = evaluate([saying((labelled, timeline_of(labelled)), f17=None)], SETTINGS, words).recall_by_label
    assert {label: interval.value for label, interval in found.items()} == {
        "initiative": 0.5, "instruction": 0.5, "feedback": 0.5, "responsive": 1.0,
    }  # fmt: skip
