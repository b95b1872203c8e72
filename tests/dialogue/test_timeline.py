"""Where events stand (docs/architecture.md#events-and-frames), with the page's worked examples."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prospect.dialogue.schema import Dialogue, Step, TimedTransition, Turn
from prospect.dialogue.state import TaskState, format_delta
from prospect.dialogue.timeline import FPS, FrameEvents, frame_at, nearest_frame, num_frames, place, record_events
from tests.factories import recipe


def dialogue(turns=(), steps=(), transitions=None, duration=400.0, **fields) -> Dialogue:
    return Dialogue(
        dataset="t",
        video_id="v",
        dialogue_id="v#0",
        turns=tuple(Turn(role=role, time=time, text=text) for role, time, text in turns),
        steps=recipe(*steps),
        explicit_transitions=transitions,
        duration=duration,
        **fields,
    )


def test_a_reply_that_follows_its_question_is_decided_at_the_question_s_frame():
    timeline = place(dialogue([("user", 7.8, "q"), ("assistant", 7.9, "a")]), 800)
    assert timeline.events == {15: FrameEvents(user=("q",), utterance="a")}


def test_a_transition_is_not_moved_by_a_user_turn_of_the_same_moment():
    timeline = place(dialogue([("user", 97.2, "q"), ("assistant", 97.2, "a")], [("x", 97.2, 120.0)]), 800)
    assert format_delta(timeline[193].delta) == "S1->start"
    assert timeline[194] == FrameEvents(user=("q",), utterance="a")


def test_two_transitions_of_one_moment_form_one_delta():
    timeline = place(dialogue(steps=[("x", 97.2, 106.8), ("y", 106.8, 152.1)]), 800)
    assert format_delta(timeline[212].delta) == "S1->complete; S2->start"


def test_two_replies_after_one_question_take_consecutive_frames():
    timeline = place(dialogue([("user", 289.0, "q"), ("assistant", 289.1, "a"), ("assistant", 289.6, "b")]), 800)
    assert timeline[578] == FrameEvents(user=("q",), utterance="a")
    assert timeline[579] == FrameEvents(utterance="b")


def test_several_user_turns_of_one_frame_stay_apart_and_in_order():
    timeline = place(dialogue([("user", 3.0, "b"), ("user", 3.2, "a")]), 800)
    assert timeline[6].user == ("b", "a")


def test_a_delta_orders_by_time_then_step_then_start_before_complete():
    timeline = place(dialogue(steps=[("x", 1.0, 5.0), ("y", 5.0, 5.2), ("z", 5.1, 9.0)]), 800)
    assert format_delta(timeline[9].delta) == "S1->complete; S2->start; S3->start; S2->complete"


def test_events_up_to_half_a_second_past_the_end_belong_to_the_last_frame_and_later_ones_are_quarantined():
    late = dialogue([("assistant", 10.4, "a"), ("user", 12.0, "q")], [("x", 2.0, 10.5)], duration=10.0)
    timeline = place(late, 20)
    assert timeline[19].utterance == "a"
    assert format_delta(timeline[19].delta) == "S1->complete"
    (lost,) = timeline.quarantined
    assert lost.what == "user turn 'q'"
    assert "12 s lies beyond" in lost.reason


def test_the_end_counts_from_the_source_s_own_start():
    late = dialogue([("assistant", 210.0, "a")], duration=100.0, video_start=150.0)
    assert not place(late, 500).quarantined


def test_the_number_of_frames_is_at_least_one():
    assert [num_frames(d) for d in (0.1, 0.5, 0.99, 1.0, 30.0)] == [1, 1, 1, 2, 60]


def test_decimal_times_do_not_fall_into_the_frame_before():
    assert place(dialogue([("user", 4.1 + 0.4, "q")]), 800)[9].user == ("q",)


FRAMES = 40
texts = st.text("abc", min_size=1, max_size=3)
events = st.builds(
    lambda user, delta, say, labels: FrameEvents(tuple(user), delta, say, labels if say else ""),
    st.lists(texts, max_size=2),
    st.just(()),
    st.none() | texts,
    st.sampled_from(["", "initiative|correction"]),
)


@given(st.dictionaries(st.integers(0, FRAMES - 1), events.filter(lambda e: e != FrameEvents()), max_size=12))
def test_a_recorded_session_is_placed_back_on_its_frames(recorded):
    turns, transitions = record_events(recorded)
    record = Dialogue(
        dataset="t", video_id="v", dialogue_id="d", turns=turns, explicit_transitions=transitions, duration=FRAMES / 2
    )
    timeline = place(record, FRAMES)
    assert timeline.events == recorded
    assert not timeline.quarantined


@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.floats(0, 30), texts), max_size=15),
    st.lists(st.tuples(st.floats(0, 28), st.floats(0, 2)), max_size=5),
)
def test_every_turn_and_transition_appears_exactly_once_or_is_quarantined(turns, spans):
    turns = sorted(turns, key=lambda t: t[1])
    record = dialogue(turns, [("x", a, a + length) for a, length in spans], duration=30.0)
    timeline = place(record, 60)
    said = [t for e in timeline.events.values() for t in e.user] + [
        e.utterance for e in timeline.events.values() if e.utterance is not None
    ]
    lost = timeline.quarantined
    assert len(said) + len([q for q in lost if "turn" in q.what]) == len(turns)
    assert sum(len(e.delta) for e in timeline.events.values()) == 2 * len(spans)
    assert all(0 <= frame < 60 for frame in timeline.events)


def test_transitions_out_of_recipe_order_within_a_frame_survive_a_recording():
    transitions = (TimedTransition(time=5.1, step=1, kind="start"), TimedTransition(time=5.3, step=0, kind="start"))
    steps = [Step(id=f"S{i}", name="x") for i in (1, 2)]
    record = Dialogue(
        dataset="t", video_id="v", dialogue_id="d", steps=steps, explicit_transitions=transitions, duration=20
    )
    timeline = place(record, 40)
    assert format_delta(timeline[9].delta) == "S2->start; S1->start"
    _, recorded = record_events(timeline.events)
    assert place(record.model_copy(update={"explicit_transitions": recorded}), 40).events == timeline.events


def test_a_recipe_whose_ids_are_out_of_order_is_refused():
    with pytest.raises(ValueError, match="ids must be"):
        Dialogue(dataset="t", video_id="v", dialogue_id="d", steps=[Step(id="S2", name="x")])


def test_what_lies_far_behind_the_last_frame_is_quarantined_however_long_the_source_says_the_video_is():
    turns = [("user", 70.0, "q"), ("assistant", 80.0, "a")]
    timeline = place(dialogue(turns, [("x", 50.0, 60.0)], duration=100.0), 10)
    assert timeline.events == {}
    assert len(timeline.quarantined) == 4


@pytest.mark.parametrize(
    "stamps",
    [[0.495 * k for k in range(11)], [k / 2 + 0.24 * (-1) ** k for k in range(40)], [k / 2 + 1e-7 for k in range(9)]],
    ids=["ticks of 33 ms", "a quarter of a second early or late", "decimal times"],
)
def test_a_live_camera_may_jitter_by_half_an_interval(stamps):
    assert [nearest_frame(stamp) for stamp in stamps] == list(range(len(stamps)))


@given(st.lists(st.floats(-0.24, 0.24), min_size=1, max_size=50))
def test_jitter_below_half_an_interval_moves_no_live_frame(jitter):
    assert [nearest_frame(k / FPS + late) for k, late in enumerate(jitter)] == list(range(len(jitter)))


@pytest.mark.parametrize("time", [1.7976931348623157e308, 1e308, float("inf")])
def test_a_time_that_no_video_reaches_is_past_the_end_and_no_error(time):
    assert frame_at(time) == num_frames(time) == nearest_frame(time) > 1e15
    turn = Turn(role="assistant", time=min(time, 1e308), text="hi")
    timeline = place(Dialogue(dataset="d", video_id="v", dialogue_id="m", goal="g", turns=(turn,)), 10)
    assert [quarantined.what for quarantined in timeline.quarantined] == ["assistant turn 'hi'"]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.floats(0, 30)), max_size=8),
    st.integers(0, 30),
    st.integers(0, 30),
)
def test_the_state_of_each_frame_is_the_replay_of_all_deltas_up_to_it(
    transitions: list[tuple[int, bool, float]], start: int, length: int
):
    moved = tuple(
        TimedTransition(step=step, kind="complete" if done else "start", time=time) for step, done, time in transitions
    )
    timeline = place(dialogue(steps=[(name, None, None) for name in "xyz"], transitions=moved, duration=40.0), 80)
    replayed, state = [], TaskState.initial(3)
    for frame in range(80):
        state, _ = state.apply(timeline[frame].delta)
        replayed.append(state)
    assert timeline.states() == replayed
    before = timeline.state_before(start)
    assert timeline.states_from(before, start, start + length) == replayed[start : start + length]
