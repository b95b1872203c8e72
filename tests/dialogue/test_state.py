"""The state machine as properties: nothing illegal is ever applied, and states only move forward."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prospect.dialogue.state import StepState, TaskState, Transition, format_delta, parse_delta
from prospect.errors import DataError

transitions = st.builds(Transition, st.integers(0, 5), st.booleans())
deltas = st.lists(transitions, max_size=8).map(tuple)
states = st.lists(st.sampled_from(StepState), max_size=6).map(lambda steps: TaskState(tuple(steps)))


@given(deltas.filter(bool))
def test_a_delta_survives_its_text(delta):
    assert parse_delta(format_delta(delta)) == delta


@pytest.mark.parametrize("text", ["", "S0->start", "S1->pause", "S1 start", "S1->start;S2->start", "S01->start"])
def test_what_is_not_a_delta_is_refused(text):
    with pytest.raises(DataError, match="not of the form"):
        parse_delta(text)


@given(states, deltas, st.sampled_from(["strict", "implied_start"]))
def test_states_only_move_forward_and_every_transition_is_applied_or_reported(state, delta, policy):
    after, illegal = state.apply(delta, policy)
    assert len(after) == len(state)
    assert all(new >= old for old, new in zip(state.steps, after.steps, strict=True))
    one_by_one, refused = state, ()
    for transition in delta:
        one_by_one, more = one_by_one.apply((transition,), policy)
        refused += more
    assert (one_by_one, refused) == (after, illegal)
    assert state.apply(state.delta_to(after))[0] == after


@given(states, transitions)
def test_legality_is_what_apply_accepts(state, transition):
    for policy in ("strict", "implied_start"):
        _, illegal = state.apply((transition,), policy)
        assert state.is_legal(transition, policy) == (not illegal)


def test_completion_needs_a_start_unless_the_policy_implies_it():
    complete = Transition(0, completes=True)
    assert TaskState.initial(1).apply((complete,))[1] == (complete,)
    after, illegal = TaskState.initial(1).apply((complete,), "implied_start")
    assert after.labels == ("completed",)
    assert not illegal


@given(states)
def test_labels_round_trip(state):
    assert TaskState.from_labels(state.labels) == state


def test_unknown_labels_and_steps_going_back_are_refused():
    with pytest.raises(DataError, match="'paused' must be one of not_started, in_progress, completed"):
        TaskState.from_labels(["paused"])
    with pytest.raises(DataError, match="cannot go back"):
        TaskState.from_labels(["completed"]).delta_to(TaskState.initial(1))


def test_an_empty_recipe_is_a_valid_state():
    assert TaskState.initial(0).apply(())[0] == TaskState(())
