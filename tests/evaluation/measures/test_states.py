"""Goal accuracy by frame, event and turn; slots; progress; what a refresh costs."""

from dataclasses import replace

import pytest

from prospect.evaluation.baselines import oracle, oracle_shifted, silence
from prospect.evaluation.metrics import evaluate
from prospect.evaluation.records import VideoDecisions
from prospect.evaluation.settings import EvaluationSettings
from prospect.streaming.types import Refreshed

SETTINGS = EvaluationSettings(bootstrap_samples=50)


def score(video, words, **settings):
    return evaluate([video], SETTINGS.model_copy(update=settings), words).overall


def test_an_event_is_right_if_it_is_known_within_the_tolerance(tea, words):
    """The state changes at frames 5, 17, 30, 39 and 61, and must be right 5 frames later."""
    assert score(oracle_shifted(*tea, frames=5), words)["event_goal_accuracy"] == 1.0
    assert score(oracle_shifted(*tea, frames=6), words)["event_goal_accuracy"] == 0.0


def test_a_change_that_the_next_one_overtakes_must_be_known_before_it(tea, words):
    """With 10 s, the change at frame 30 must be known at 38: 9 frames late is too late for it alone."""
    scores = score(oracle_shifted(*tea, frames=9), words, event_tolerance=10)
    assert scores["event_goal_accuracy"] == 4 / 5


def test_at_the_reference_turns_a_frame_late_is_wrong(tea, words):
    assert score(oracle(*tea), words)["turn_goal_accuracy"] == 1.0
    assert score(oracle_shifted(*tea), words)["turn_goal_accuracy"] == 0.0


def test_slots_and_progress_of_one_who_never_moves(tea, words):
    scores = score(silence(*tea), words)
    assert scores["slot_f1"] == 0.0, "no step that has started was found"
    assert scores["progress_error"] == pytest.approx((13 / 3 + 31 * 2 / 3 + 19) / 80)
    assert score(oracle(*tea), words)["slot_f1"] == 1.0


def test_states_around_a_refresh(tea, words):
    """The context is rebuilt before frame 40, and the state is lost until frame 50."""
    decisions = [
        replace(d, state=silence(*tea).decisions[0].state) if 40 <= d.frame < 50 else d for d in oracle(*tea).decisions
    ]
    scores = score(VideoDecisions(*tea, decisions, refreshes=(Refreshed(40, 400, 90),)), words)
    assert (scores["goal_accuracy_before_refresh"], scores["goal_accuracy_after_refresh"]) == (1.0, 0.5)
    assert score(VideoDecisions(*tea, decisions), words)["goal_accuracy_after_refresh"] is None


def test_updates_that_the_own_state_did_not_allow(tea, words):
    """The oracle's first delta said twice: the second time nothing could start."""
    decisions = [
        replace(d, delta=oracle(*tea).decisions[5].delta) if d.frame == 8 else d for d in oracle(*tea).decisions
    ]
    scores = score(VideoDecisions(*tea, decisions), words)
    assert scores["illegal_update_rate"] == 1 / 7
    assert score(oracle(*tea), words)["illegal_update_rate"] == 0.0


def test_instructions_are_completed_in_the_users_time(tea, words):
    """Only completions count: a system that never says that steps start has them all."""
    decisions = [replace(d, delta=tuple(t for t in d.delta if t.completes)) for d in oracle(*tea).decisions]
    scores = score(VideoDecisions(*tea, decisions), words)
    assert (scores["instruction_completion"], scores["dst_recall"]) == (1.0, 0.5)
