"""One span a step, and what becomes of points and overlaps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prospect.data.labels.spans import SpanSettings, block_ends, spans_of
from prospect.dialogue.schema import Annotation, Step
from prospect.errors import DataError

SETTINGS = SpanSettings()


def spans(*blocks: tuple[float, float | None], video_end: float | None = None):
    """Each block is a step of its own."""
    annotations = [Annotation(start=start, end=end, text="line") for start, end in blocks]
    steps = [Step(id=f"S{number + 1}", name="step") for number in range(len(blocks))]
    ones = [1.0] * len(blocks)
    return spans_of(steps, annotations, range(len(blocks)), ones, "aligner", SETTINGS, video_end)


def test_a_span_goes_from_the_first_start_to_the_last_end():
    blocks = [Annotation(start=start, end=end, text="line") for start, end in ((3, 9), (4, 5), (20, 30))]
    steps = (Step(id="S1", name="first"), Step(id="S2", name="second"))
    (first, second), overlaps = spans_of(steps, blocks, (0, 0, 1), (0.75, 0.5), "aligner", SETTINGS)
    assert (first.start, first.end, first.confidence, first.source) == (3, 9, 0.75, "aligner")
    assert (second.id, second.name, second.start, second.end) == ("S2", "second", 20, 30)
    assert overlaps == ()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("screw the chassis", 6),
        ("attach wheel", 10),
        ("attempt to attach body", 10),
        ("demonstrates it", 12),
        ("go", 8),
    ],
)
def test_a_point_lasts_as_long_as_its_verb_says(text, seconds):
    assert block_ends([Annotation(start=5, text=text)], SETTINGS) == [5 + seconds]


def test_a_line_that_ends_where_it_starts_is_a_point():
    assert block_ends([Annotation(start=5, end=5, text="go")], SETTINGS) == [13]


def test_a_point_ends_where_the_next_later_line_starts():
    points = [Annotation(start=start, text="go") for start in (0, 2, 2, 30)]
    assert list(block_ends(points, SETTINGS, video_end=33)) == [2, 10, 10, 33]


def test_neighbours_that_overlap_a_little_meet_in_the_middle():
    (first, second), overlaps = spans((0, 14), (10, 30))
    assert (first.end, second.start, overlaps) == (12, 12, ())


def test_a_larger_overlap_stays_as_annotated_and_is_reported():
    (first, second), overlaps = spans((0, 20), (10, 30))
    assert (first.end, second.start) == (20, 10)
    assert [str(overlap) for overlap in overlaps] == ["steps S1 and S2 overlap by 10.0 s"]


def test_a_step_inside_its_neighbour_is_not_trimmed_away():
    (first, second), overlaps = spans((0, 10), (6, 7))
    assert (first.end, second.start, second.end) == (10, 6, 7)
    assert overlaps[0].seconds == 1


def test_spans_end_with_the_video():
    (step,), _ = spans((95, None), video_end=100)
    assert (step.start, step.end) == (95, 100)


def test_clocks_may_differ_by_half_a_second():
    (step,), _ = spans((100.4, 101), video_end=100)
    assert (step.start, step.end) == (100, 100)


def test_a_line_past_the_end_of_the_video_is_one_sentence():
    with pytest.raises(DataError, match=r"annotations: line 'line' starts at 120\.0 s, past the end of the video"):
        spans((120, 130), video_end=100)


blocks = st.lists(st.tuples(st.floats(0, 100), st.none() | st.floats(0, 40)), min_size=1, max_size=12)


@given(blocks, st.data())
def test_spans_of_any_blocks(blocks, data):
    blocks = sorted(blocks, key=lambda block: block[0])
    annotations = [Annotation(start=a, end=None if b is None else a + b, text="line") for a, b in blocks]
    count = data.draw(st.integers(1, len(blocks)))
    borders = sorted(data.draw(st.permutations(range(1, len(blocks))))[: count - 1])
    assignment = [sum(border <= index for border in borders) for index in range(len(blocks))]
    steps = [Step(id=f"S{number + 1}", name="step") for number in range(count)]
    timed, overlaps = spans_of(steps, annotations, assignment, [0.5] * count, "aligner", SETTINGS, video_end=120)
    assert [step.id for step in timed] == [step.id for step in steps]
    assert all(0 <= step.start <= step.end <= 120 for step in timed)
    assert [step.start for step in timed] == sorted(step.start for step in timed)
    reported = {overlap.second for overlap in overlaps}
    for index, step in enumerate(timed):
        assert (step.id in reported) == any(earlier.end > step.start for earlier in timed[:index])
