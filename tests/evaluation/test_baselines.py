"""Baselines: what each says and believes, and that none of them raises."""

import pytest

from prospect.dialogue.state import StepState, TaskState
from prospect.evaluation.baselines import (
    Periodic,
    TimePrior,
    oracle,
    oracle_shifted,
    right_time_wrong_step,
    silence,
)


def test_the_oracle_says_and_believes_the_reference(tea):
    video = oracle(*tea)
    assert video.utterances == video.reference_utterances
    assert video.events() == video.reference_events()
    assert [decision.state for decision in video.decisions] == tea[1].states()


def test_a_late_oracle_lacks_what_falls_off_the_end(tea):
    late = oracle_shifted(*tea, frames=20)
    assert list(late.utterances) == [25, 37, 59]
    assert len(late.decisions) == 80


def test_periodic_recites_the_recipe_at_the_rhythm_of_training(tea, toy):
    rhythm = Periodic.fit([tea])
    assert (rhythm.first, rhythm.interval) == (5, pytest.approx((61 - 5) / 3))
    said = rhythm(*toy).utterances
    assert list(said.values()) == list(toy[0].step_names)
    assert list(said) == [5, 24]
    assert all(decision.state == TaskState.initial(2) for decision in rhythm(*toy).decisions)


def test_periodic_counts_from_the_first_frame_of_a_dialogue_inside_a_video(tea):
    inside = tea[0].model_copy(update={"first_frame": 16}), tea[1]
    rhythm = Periodic.fit([inside])
    assert (rhythm.first, rhythm.interval) == (1, pytest.approx((61 - 17) / 2)), "frames 17, 39 and 61"
    assert list(rhythm(*inside).utterances) == [17, 39, 61]


def test_the_time_prior_knows_the_usual_state_at_a_share_of_the_video(tea, toy):
    prior = TimePrior.fit([tea[1]])
    matches = sum(a.state == b for a, b in zip(prior(*tea).decisions, tea[1].states(), strict=True))
    assert matches >= 70, "learnt from the very video; a bin holds one or two frames"
    assert {decision.state for decision in prior(*toy).decisions} == {TaskState.initial(2)}, "unseen recipe length"


def test_the_time_prior_takes_the_majority(tea):
    dialogue, timeline = tea
    never = silence(dialogue, timeline)
    idle = type(timeline)(timeline.num_frames, timeline.num_steps)
    prior = TimePrior.fit([timeline, idle, idle])
    assert [d.state for d in prior(*tea).decisions] == [d.state for d in never.decisions]


def test_wrong_words_at_the_right_time(tea):
    dialogue, timeline = tea
    video = right_time_wrong_step(dialogue, timeline)
    assert video.utterances.keys() == video.reference_utterances.keys()
    assert all(video.utterances[frame] != text for frame, text in video.reference_utterances.items())
    assert video.utterances[5] == "drop teabag inside mug"


def test_a_lone_utterance_is_replaced_by_another_steps_name(tea):
    dialogue, timeline = tea
    lone = type(timeline)(80, 3, {5: timeline[5]})
    assert right_time_wrong_step(dialogue, lone).utterances == {5: "drop teabag inside mug"}


@pytest.mark.parametrize("system", ["silence", "oracle", "shifted", "wrong step", "periodic", "time prior"])
def test_every_baseline_decides_every_frame_of_every_video(system, references):
    training = [timeline for _, timeline in references]
    systems = {
        "silence": silence,
        "oracle": oracle,
        "shifted": oracle_shifted,
        "wrong step": right_time_wrong_step,
        "periodic": Periodic.fit(references),
        "time prior": TimePrior.fit(training),
    }
    for dialogue, timeline in references:
        video = systems[system](dialogue, timeline)
        assert [decision.frame for decision in video.decisions] == list(range(80))


def test_a_dialogue_on_a_part_of_its_video_is_decided_there_only(tea):
    dialogue = tea[0].model_copy(update={"first_frame": 20, "last_frame": 50})
    video = oracle(dialogue, tea[1])
    assert video.frames == range(20, 50)
    assert (video.decisions[0].frame, video.decisions[-1].frame) == (0, 29)
    assert video.decisions[0].state.steps[0] is StepState.COMPLETED
    assert list(video.utterances) == list(video.reference_utterances) == [39]


def test_fitting_on_nothing_still_gives_a_baseline(tea):
    assert len(Periodic.fit([])(*tea).utterances) == 3
    assert len(TimePrior.fit([])(*tea).decisions) == 80
