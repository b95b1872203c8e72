"""What the scores say about systems whose quality is known: the oracle, a late oracle, silence."""

import json
import random
from dataclasses import replace

import pytest
from rich.console import Console

from prospect.corpus.tasks import DATASET
from prospect.dialogue.schema import Dialogue, Turn
from prospect.dialogue.state import TaskState
from prospect.dialogue.timeline import num_frames, place
from prospect.errors import DataError
from prospect.evaluation.baselines import (
    Periodic,
    TimePrior,
    oracle,
    oracle_shifted,
    right_time_wrong_step,
    silence,
)
from prospect.evaluation.metrics import average_precision, evaluate, paired_intervals
from prospect.evaluation.records import VideoDecisions
from prospect.evaluation.settings import EvaluationSettings
from prospect.reports.tables import render_table
from tests.evaluation.encoders import SharedWords

SETTINGS = EvaluationSettings(bootstrap_samples=200)


def run(system, references, words):
    return evaluate([system(*reference) for reference in references], SETTINGS, words)


def test_the_oracle_is_perfect_and_every_match_lies_on_its_own_frame(references, words):
    scores = run(oracle, references, words).overall
    perfect = ("turn_precision", "turn_recall", "turn_f1", "jaccard_index", "exact_frame_rate", "dst_f1")
    perfect += ("joint_goal_accuracy", "slot_accuracy", "readout_joint_goal_accuracy", "update_average_precision")
    assert {name: scores[name] for name in perfect} == dict.fromkeys(perfect, 1.0)
    assert scores["speak_average_precision"] == 1.0
    assert scores["semantic_score"] == pytest.approx(1.0)
    zero = ("time_diff", "missing_rate", "redundant_rate", "dst_latency")
    assert {name: scores[name] for name in zero} == dict.fromkeys(zero, 0.0)


def test_the_oracle_one_frame_late_is_half_a_second_off(references, words):
    scores = run(oracle_shifted, references, words).overall
    assert scores["turn_f1"] == 1.0
    assert (scores["time_diff"], scores["exact_frame_rate"]) == (0.5, 0.0)
    assert (scores["dst_f1"], scores["dst_latency"]) == (1.0, 0.5)
    wrong = 9  # frames at which the state changes: five in tea (one shared), four in toy
    assert scores["joint_goal_accuracy"] == pytest.approx(1 - wrong / 160)


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("Good. Next, cut the kite.", True),
        ("First, cut the kite.", True),
        ("Good. Next, wrap the kite.", False),
        ("Good. Next, cut the star.", False),
        ("Good. Next, cut it.", False),
        ("Good. Next, cut the kite with the knife.", False),
    ],
)
def test_words_are_right_where_object_action_and_tool_agree(said, right):
    """Of the sample corpus; all of them are similar enough to count as a correct turn."""
    reference = "Good. Next, cut the kite."
    dialogue = Dialogue(
        dataset=DATASET, video_id="v", dialogue_id="v#0", turns=(Turn(role="assistant", time=2.0, text=reference),),
        duration=8.0,
    )  # fmt: skip
    timeline = place(dialogue, num_frames(8.0))
    [(frame, events)] = timeline.events.items()
    assert events.utterance == reference
    spoken = replace(oracle(dialogue, timeline), decisions=[
        replace(decision, utterance=said if decision.frame == frame else None)
        for decision in oracle(dialogue, timeline).decisions
    ])  # fmt: skip
    loose = SETTINGS.model_copy(update={"similarity_threshold": 0.0})
    scores = evaluate([spoken], loose, SharedWords()).overall
    assert (scores["turn_f1"], scores["content_f1"]) == (1.0, float(right))
    elsewhere = replace(spoken, dialogue=dialogue.model_copy(update={"dataset": "kitchen"}))
    assert evaluate([elsewhere], loose, SharedWords()).overall["content_f1"] is None


def test_silence_scores_nothing(references, words):
    scores = run(silence, references, words).overall
    for name in ("turn_precision", "turn_recall", "turn_f1", "jaccard_index", "dst_f1", "redundant_rate"):
        assert scores[name] == 0.0, name
    assert scores["missing_rate"] == 1.0
    assert scores["time_diff"] is scores["semantic_score"] is scores["dst_latency"] is None
    assert scores["joint_goal_accuracy"] == (5 + 9) / 160, "until the first step starts"


def test_the_right_time_with_a_wrong_steps_words_is_not_enough(references, words):
    scores = run(right_time_wrong_step, references, words).overall
    assert scores["turn_f1"] < 0.5
    assert scores["utterances_per_minute"] == scores["reference_utterances_per_minute"]


def test_no_baseline_raises_on_videos_without_talk_or_recipe(quiet, chat, words):
    for system in (silence, oracle, oracle_shifted, right_time_wrong_step, Periodic.fit([]), TimePrior.fit([])):
        scores = run(system, [quiet], words).overall
        assert scores["turn_f1"] == 0.0
        assert scores["dst_f1"] is scores["joint_goal_accuracy"] is scores["slot_accuracy"] is None
        assert scores.intervals["joint_goal_accuracy"] is None
        assert run(system, [chat], words).overall["joint_goal_accuracy"] is None


def test_no_videos_at_all(words):
    scores = evaluate([], SETTINGS, words)
    assert scores.overall["joint_goal_accuracy"] is None
    assert scores.macro["turn_f1"] is None


def test_talking_where_the_reference_is_silent_is_redundant(quiet, tea, words):
    said = oracle(*tea).decisions
    babble = VideoDecisions(*quiet, [replace(decision, state=TaskState(()), readout=None) for decision in said])
    scores = evaluate([babble], SETTINGS, words).overall
    assert (scores["redundant_rate"], scores["turn_f1"], scores["dst_f1"]) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(("mode", "said"), [("compat", 0), ("corrected", 3)])
def test_a_full_stop_alone_is_silence_to_the_published_code(mode, said, tea, words):
    decisions = [replace(d, utterance="." if d.frame in (2, 4, 30) else None) for d in oracle(*tea).decisions]
    settings = EvaluationSettings(matching={"mode": mode})
    assert evaluate([VideoDecisions(*tea, decisions)], settings, words).overall.counts["generated"] == said


def test_pairs_below_the_threshold_count_against_both_sides(tea, words):
    said = [
        replace(
            decision, utterance="boil milk today please" if decision.utterance == "boil water" else decision.utterance
        )
        for decision in oracle(*tea).decisions
    ]
    scores = evaluate([VideoDecisions(*tea, said)], SETTINGS, words).overall
    assert (scores["missing_rate"], scores["redundant_rate"]) == (0.0, 0.0)
    assert scores["turn_precision"] == scores["turn_recall"] == scores["jaccard_index"] == 0.75


def test_frames_without_a_decision_count_as_wrong(tea, words):
    scores = evaluate([VideoDecisions(*tea, oracle(*tea).decisions[:60])], SETTINGS, words).overall
    assert scores.counts["undecided"] == 20
    assert scores["joint_goal_accuracy"] == scores["readout_joint_goal_accuracy"] == 0.75


def test_a_frame_decided_twice_is_refused(tea):
    decisions = list(oracle(*tea).decisions)
    with pytest.raises(DataError, match="frame 7 of dialogue 'tea-no_talk' was decided twice"):
        VideoDecisions(*tea, [*decisions, decisions[7]])


def test_the_readout_is_scored_apart_from_the_tracked_state(tea, words):
    blind = [replace(decision, state=TaskState.initial(3)) for decision in oracle(*tea).decisions]
    scores = evaluate([VideoDecisions(*tea, blind)], SETTINGS, words).overall
    assert (scores["joint_goal_accuracy"], scores["readout_joint_goal_accuracy"]) == (5 / 80, 1.0)
    without = [replace(decision, readout=None) for decision in blind]
    assert evaluate([VideoDecisions(*tea, without)], SETTINGS, words).overall["readout_joint_goal_accuracy"] is None


def test_illegal_reference_transitions_are_not_asked_for(tea, words):
    """Completing what never started changes no state under the strict policy."""
    dialogue, timeline = tea
    unstarted = {frame: events for frame, events in timeline.events.items() if frame != 5}
    scores = evaluate([oracle(dialogue, replace(timeline, events=unstarted))], SETTINGS, words).overall
    assert (scores["dst_f1"], scores["joint_goal_accuracy"]) == (1.0, 1.0)
    assert scores.counts["events_reference"] == 4


def test_slices_by_dataset_and_user_type(references, words):
    scores = run(oracle, references, words)
    assert scores.by_dataset.keys() == {"sample", "assembly101", "wtag"}
    assert scores.by["user_type"].keys() == {"no_talk", "talk_some", "unknown"}
    assert scores.by_dataset["wtag"]["joint_goal_accuracy"] is None
    assert scores.macro["turn_f1"] == 1.0


def test_scores_do_not_depend_on_the_order_of_videos(references, words):
    shuffled = list(references)
    random.Random(3).shuffle(shuffled)
    ordered, permuted = run(oracle_shifted, references, words), run(oracle_shifted, shuffled, words)
    assert ordered.to_dict() == permuted.to_dict()


def test_scores_are_plain_json_and_a_trackers_numbers(references, words):
    scores = run(silence, references, words)
    again = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert again["overall"]["metrics"]["time_diff"] is None
    assert again["overall"]["intervals"]["turn_f1"]["value"] == 0.0
    assert "time_diff" not in scores.logged()
    assert scores.logged()["turn_f1"] == 0.0


def test_states_alone_are_scored_without_an_encoder(references):
    assert evaluate([silence(*reference) for reference in references], SETTINGS).overall["turn_f1"] == 0.0
    with pytest.raises(DataError, match="without a sentence encoder"):
        evaluate([oracle(*references[0])], SETTINGS)


def test_the_bootstrap_depends_on_the_seed_and_on_nothing_else(tea, toy, chat, words):
    videos = [oracle(*tea), oracle_shifted(*toy, frames=9), oracle(*chat)]
    first, again = evaluate(videos, SETTINGS, words), evaluate(videos, SETTINGS, words)
    assert first.overall.intervals == again.overall.intervals
    interval = first.overall.intervals["joint_goal_accuracy"]
    assert interval.low < interval.value < interval.high
    other = evaluate(videos, SETTINGS.model_copy(update={"seed": 1, "bootstrap_samples": 7}), words)
    assert other.overall.intervals != first.overall.intervals


def test_dialogues_of_one_video_are_drawn_together(tea, words):
    """Three user types of one video are one sample: no interval can be had from them."""
    copies = [oracle_shifted(*tea), silence(*tea), oracle(*tea)]
    interval = evaluate(copies, SETTINGS, words).overall.intervals["joint_goal_accuracy"]
    assert interval.low == interval.value == interval.high


def test_the_paired_interval_is_narrow_where_systems_fail_on_the_same_videos(tea, toy, words):
    better = evaluate([oracle(*tea), oracle_shifted(*toy, frames=5)], SETTINGS, words)
    worse = evaluate([oracle_shifted(*tea), oracle_shifted(*toy, frames=6)], SETTINGS, words)
    difference = paired_intervals(better, worse, SETTINGS)["joint_goal_accuracy"]
    assert 0 < difference.low <= difference.value <= difference.high
    single = better.overall.intervals["joint_goal_accuracy"]
    assert difference.high - difference.low < single.high - single.low


def test_systems_scored_on_different_videos_cannot_be_paired(tea, toy, words):
    with pytest.raises(DataError, match="'assembly101/toy' was scored for one of the two systems only"):
        paired_intervals(run(oracle, [tea, toy], words), run(oracle, [tea], words))


@pytest.mark.parametrize(
    ("probabilities", "labels", "expected"),
    [
        ([0.9, 0.8, 0.1], [True, True, False], 1.0),
        ([0.1, 0.8, 0.9], [True, False, False], 1 / 3),
        ([0.5, 0.5, 0.5, 0.5], [True, False, False, False], 0.25),
        ([0.9, 0.7, 0.5], [True, False, True], (1 + 2 / 3) / 2),
        ([0.3], [False], None),
        ([], [], None),
    ],
)
def test_average_precision(probabilities, labels, expected):
    assert average_precision(probabilities, labels) == (expected if expected is None else pytest.approx(expected))


def test_the_closing_table_fits_a_terminal_and_has_the_best_words_first(references, words):
    rows = {"silence": run(silence, references, words), "right time, wrong step": run(oracle, references, words)}
    console = Console(width=80)
    with console.capture() as capture:
        console.print(render_table(rows))
    lines = capture.get().splitlines()
    assert "…" not in capture.get()
    systems = [line for line in lines if line.lstrip().startswith(("silence", "right"))]
    assert systems[0].split()[:3] == ["right", "time,", "wrong"]
    assert systems[1].split()[:5] == ["silence", "0.00", "0.00", "-", "-"], "no utterance: no step, no time difference"
