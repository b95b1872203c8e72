"""Transitions are matched by step and kind, one to one, within a tolerance."""

from prospect.dialogue.state import Transition
from prospect.evaluation.events import match_events

START, DONE, OTHER = Transition(0, False), Transition(0, True), Transition(1, False)


def test_step_and_kind_must_agree():
    assert match_events([(4, START), (9, DONE)], [(4, DONE), (9, OTHER)], 4) == []
    assert match_events([(4, START), (9, DONE)], [(5, START), (9, OTHER)], 5) == [(4, 5)]


def test_the_tolerance_is_inclusive():
    assert match_events([(10, START)], [(15, START)], 5) == [(10, 15)]
    assert match_events([(10, START)], [(16, START)], 5) == []


def test_a_repeated_transition_counts_once():
    assert match_events([(9, START), (10, START), (11, START)], [(10, START)], 5) == [(10, 10)]


def test_as_many_pairs_as_possible_come_before_near_ones():
    """Frame 4 to 5 would be nearest, but leaves 0 and 9 alone."""
    assert match_events([(0, START), (4, START)], [(5, START), (9, START)], 5) == [(0, 5), (4, 9)]
