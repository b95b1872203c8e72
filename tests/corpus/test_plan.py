"""The sample corpus before it is drawn: tasks, timing and words."""

from itertools import pairwise

import pytest
from pydantic import ValidationError

from prospect.corpus.plan import DrawnVideo, plan_corpus
from prospect.corpus.script import TALK_RATES
from prospect.corpus.settings import CorpusSettings
from prospect.corpus.tasks import OBJECTS, TOOLS, unseen_pairs
from prospect.dialogue.recipe import read_recipe
from prospect.dialogue.state import StepState, TaskState
from prospect.dialogue.timeline import num_frames, place
from prospect.errors import ConfigError

SETTINGS = CorpusSettings(seed=11)


@pytest.fixture(scope="module")
def videos() -> list[DrawnVideo]:
    return plan_corpus(SETTINGS)


def of_split(videos: list[DrawnVideo], split: str) -> list[DrawnVideo]:
    return [video for video in videos if video.dialogue.split == split]


def test_the_splits_have_the_asked_sizes_and_unique_ids(videos: list[DrawnVideo]) -> None:
    assert [len(of_split(videos, split)) for split in ("train", "validation", "test")] == [560, 16, 24]
    assert len({video.dialogue.dialogue_id for video in videos}) == len(videos)
    assert {video.dialogue.user_type for video in videos} == set(TALK_RATES)


def test_equal_settings_plan_equal_corpora_and_another_seed_another(videos: list[DrawnVideo]) -> None:
    assert plan_corpus(SETTINGS) == videos
    assert plan_corpus(CorpusSettings(seed=12)) != videos


@pytest.mark.parametrize("seed", range(5))
def test_every_test_goal_holds_a_pair_that_no_other_split_shows_of_an_object_and_an_action_seen_in_training(
    seed: int,
) -> None:
    settings = CorpusSettings(seed=seed, num_train=30, unseen_pairs=6)
    videos = plan_corpus(settings)
    train = [video.script.task.recipe for video in of_split(videos, "train")]
    shown = {work for recipe in train for work in recipe}
    assert {work.object for work in shown} == set(OBJECTS)
    assert {work.action for work in shown} == set(TOOLS)
    for video in of_split(videos, "test"):
        assert unseen_pairs(settings) & set(video.script.task.recipe)
    for video in of_split(videos, "validation") + of_split(videos, "test"):
        assert frozenset(video.script.task.recipe) not in set(map(frozenset, train))
    for video in of_split(videos, "train") + of_split(videos, "validation"):
        assert not unseen_pairs(settings) & set(video.script.task.recipe)


def test_too_few_training_videos_to_show_every_object_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_train: 1 training videos never show"):
        plan_corpus(CorpusSettings(num_train=1))


@pytest.mark.parametrize(
    "wrong", [{"min_steps": 5, "max_steps": 4}, {"pause": (0.5, 1.0)}, {"idle": (1.0, 1.2)}, {"image_size": 50}]
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        CorpusSettings(**wrong)  # type: ignore[arg-type]


def test_all_times_lie_on_half_seconds(videos: list[DrawnVideo]) -> None:
    for video in videos:
        dialogue = video.dialogue
        times = [turn.time for turn in dialogue.turns] + [change.time for change in dialogue.transitions()]
        assert all((2 * time).is_integer() for time in [*times, dialogue.duration])


def test_every_transition_is_legal_and_every_step_is_completed(videos: list[DrawnVideo]) -> None:
    for video in videos:
        timeline = place(video.dialogue, num_frames(video.dialogue.duration))
        state = TaskState.initial(timeline.num_steps)
        for frame in sorted(timeline.events):
            state, illegal = state.apply(timeline[frame].delta)
            assert illegal == ()
        assert set(state.steps) == {StepState.COMPLETED}


def test_every_turn_has_its_own_frame_and_nothing_is_quarantined(videos: list[DrawnVideo]) -> None:
    for video in videos:
        timeline = place(video.dialogue, num_frames(video.dialogue.duration))
        assert timeline.quarantined == ()
        spoken = [turn for turn in video.dialogue.turns if turn.role == "assistant"]
        said = [frame for frame in timeline.events if timeline[frame].utterance is not None]
        assert len(said) == len(spoken)
        # An answer is decided at the frame that the question stands before, anything else at floor(2t) - 1.
        expected = [int(2 * turn.time) - turn.labels.startswith("initiative") for turn in spoken]
        assert said == expected


def test_every_transition_and_every_user_turn_stands_exactly_once_on_its_frame(videos: list[DrawnVideo]) -> None:
    """The event-to-frame rule, counted without `place`: all times are multiples of half a second."""
    for video in videos:
        dialogue = video.dialogue
        timeline = place(dialogue, num_frames(dialogue.duration))
        placed = sorted((frame, str(t)) for frame, events in timeline.events.items() for t in events.delta)
        spans = [
            (step.id, kind, at)
            for step in dialogue.steps
            for kind, at in (("start", step.start), ("complete", step.end))
        ]
        assert placed == sorted((int(2 * at) - 1, f"{step}->{kind}") for step, kind, at in spans)
        asked = [(frame, text) for frame, events in sorted(timeline.events.items()) for text in events.user]
        assert asked == [(int(2 * turn.time), turn.text) for turn in dialogue.turns if turn.role == "user"]


def test_assistants_are_silent_at_nine_frames_in_ten_as_those_of_recordings(videos: list[DrawnVideo]) -> None:
    """What the engine's fast path can be, by default and with any seed (docs/benchmarks.md)."""
    frames = sum(num_frames(video.dialogue.duration) for video in videos)
    spoken = sum(turn.role == "assistant" for video in videos for turn in video.dialogue.turns)
    assert 0.05 < spoken / frames < 0.1


def test_the_recipe_text_holds_the_steps(videos: list[DrawnVideo]) -> None:
    for video in videos:
        assert read_recipe(video.dialogue.knowledge).steps == video.dialogue.step_names


def test_order_durations_and_idle_time_vary(videos: list[DrawnVideo]) -> None:
    performed = [[span.step for span in video.script.spans if span.step is not None] for video in videos]
    in_order = [order == sorted(order) for order in performed]
    assert 0.1 < sum(in_order) / len(in_order) < 0.9
    assert len({span.end - span.start for video in videos for span in video.script.spans}) >= 4
    assert len({video.script.spans[0].start for video in videos}) >= 4
    assert len({num_frames(video.script.duration) for video in videos}) >= 20


def test_steps_sometimes_follow_at_one_moment_and_mistakes_touch_only_distractors(videos: list[DrawnVideo]) -> None:
    chained = mistakes = 0
    for video in videos:
        chained += sum(first.end == then.start for first, then in pairwise(video.script.spans))
        wrong = [span for span in video.script.spans if span.step is None]
        mistakes += len(wrong)
        assert all(span.work.object in video.script.task.distractors for span in wrong)
        corrections = [turn.time for turn in video.dialogue.turns if turn.labels == "initiative|correction"]
        assert corrections == [span.start for span in wrong]
    assert chained > 20
    assert mistakes > 20


def test_users_talk_as_much_as_their_type_says(videos: list[DrawnVideo]) -> None:
    moves: dict[str, list[float]] = {user_type: [] for user_type in TALK_RATES}
    for video in videos:
        asked = sum(turn.role == "user" for turn in video.dialogue.turns) - 1
        moves[video.dialogue.user_type].append(asked / len(video.dialogue.steps))
    no_talk, some, more = (sum(shares) / len(shares) for shares in moves.values())
    assert no_talk == 0
    assert 0 < some < more


def test_sentences_are_short_and_the_first_names_the_goal(videos: list[DrawnVideo]) -> None:
    for video in videos:
        turns = video.dialogue.turns
        assert max(len(turn.text.split()) for turn in turns) <= 12
        assert turns[0].role == "user"
        assert turns[0].text == f"I want to p{video.dialogue.goal[1:]}."
        assert turns[1].text == f"First, {_lower(video.dialogue.step_names[0])}."


def test_progress_sums_up_the_state_at_each_thing_that_the_assistant_says(videos: list[DrawnVideo]) -> None:
    for video in videos[:20]:
        dialogue = video.dialogue
        timeline = place(dialogue, num_frames(dialogue.duration))
        states, names = timeline.states(), list(map(_lower, dialogue.step_names))
        for frame in (frame for frame, events in timeline.events.items() if events.utterance is not None):
            text = timeline.progress_before(frame + 1)
            done, now = text.split("Done: ")[1].split(". Next: ")[0].split(". Now: ")
            for said, kind in ((done, StepState.COMPLETED), (now, StepState.IN_PROGRESS)):
                expected = [name for name, step in zip(names, states[frame].steps, strict=True) if step is kind]
                assert said == (", ".join(expected) or "nothing")
    assert not any(turn.progress for turn in videos[0].dialogue.turns if turn.role == "user")


def test_the_instruction_at_a_completion_is_the_first_step_neither_completed_nor_in_progress(
    videos: list[DrawnVideo],
) -> None:
    for video in videos:
        dialogue = video.dialogue
        frames = num_frames(dialogue.duration)
        timeline = place(dialogue, frames)
        states = timeline.states()
        for frame, events in timeline.events.items():
            if any(change.completes for change in events.delta):
                waiting = [
                    name
                    for name, state in zip(dialogue.step_names, states[frame].steps, strict=True)
                    if state is StepState.NOT_STARTED
                ]
                if waiting:
                    assert events.utterance == f"Good. Next, {_lower(waiting[0])}."
                elif StepState.IN_PROGRESS in states[frame].steps:
                    assert events.utterance == "Good. This is the last step."
                else:
                    assert events.utterance == "Good. You are all done."


def _lower(name: str) -> str:
    return name[0].lower() + name[1:]
