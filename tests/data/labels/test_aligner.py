"""Annotation lines on recipe steps, with the packaged encoder."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prospect.data.labels.aligner import OUTSIDE, AlignerSettings, align, pauses_between, support
from prospect.data.labels.spans import SpanSettings
from prospect.dialogue.schema import Annotation
from prospect.errors import DataError
from prospect.similarity import SentenceEncoder, SentenceSimilarity

STEPS = ("Boil the water", "Grind the coffee beans", "Pour the water over the ground coffee")


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceSimilarity()


class Letters:
    """Counts letters: an encoder for properties that hold with any."""

    def embed(self, texts):
        counts = np.array([[text.count(letter) + 0.1 for letter in "abc"] for text in texts], np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def lines(*texts: str, seconds: float = 10.0) -> list[Annotation]:
    """Lines without a pause between them."""
    return [Annotation(start=i * seconds, end=(i + 1) * seconds, text=text) for i, text in enumerate(texts)]


def test_texts_decide_where_there_is_no_pause(encoder):
    blocks = lines(
        "fill the kettle with water",
        "heat the kettle",
        "take coffee beans",
        "grind beans in the grinder",
        "pour hot water onto the grounds",
    )
    alignment = align(STEPS, blocks, encoder, AlignerSettings())
    assert alignment.assignment == (0, 0, 1, 1, 2)
    assert len(alignment.confidences) == 3


def test_pauses_decide_where_all_texts_are_equal(encoder):
    blocks = [Annotation(start=t, end=t + 10, text="stir the pot") for t in (0, 11, 22, 60, 71, 82, 93, 140)]
    alignment = align(["stir the pot"] * 3, blocks, encoder, AlignerSettings())
    assert alignment.assignment == (0, 0, 0, 1, 1, 1, 1, 2)


def test_confidence_falls_where_neither_text_nor_time_tells(encoder):
    clear = align(STEPS[:2], lines(*STEPS[:2]), encoder, AlignerSettings())
    unclear = align(["stir"] * 2, lines(*["stir"] * 9), encoder, AlignerSettings())
    assert min(clear.confidences) > 0.95
    assert max(unclear.confidences) < 0.9


BOOKKEPT = ("fill the kettle with water", "grind beans in the grinder", "pour hot water onto the grounds")


@pytest.mark.parametrize(
    ("first", "last"),
    [("start", "Done"), ("Recording starts", "The end"), ("begin", "video ends"), ("Start.", "done")],
)
def test_bookkeeping_before_and_after_the_steps_stays_unassigned(encoder, first: str, last: str):
    alignment = align(STEPS, lines(first, *BOOKKEPT, last), encoder, AlignerSettings())
    assert alignment.assignment == (OUTSIDE, 0, 1, 2, OUTSIDE)
    assert min(alignment.confidences) > 0.7


def test_a_step_that_starts_something_keeps_its_line(encoder):
    blocks = lines("start the timer", "wait for a while", "turn the timer off, done")
    assert (
        OUTSIDE not in align(["Start the timer", "Turn off the timer"], blocks, encoder, AlignerSettings()).assignment
    )


def test_a_line_that_must_belong_to_a_step_has_no_certain_confidence(encoder):
    alignment = align(STEPS, lines("start", *BOOKKEPT[1:]), encoder, AlignerSettings())
    assert alignment.assignment == (0, 1, 2)
    assert alignment.confidences[0] < 0.2
    assert all(0.5 < confidence < 1 for confidence in alignment.confidences[1:])


def test_a_mapping_that_keeps_bookkeeping_has_a_low_confidence(encoder):
    blocks = lines("start", *BOOKKEPT, "Done")
    kept = support((0, 0, 1, 2, 2), STEPS, blocks, encoder, AlignerSettings())
    assert kept[0] < 0.6
    assert kept[1] > 0.7


texts = st.text("abc", min_size=1, max_size=3)


@settings(max_examples=50)
@given(st.lists(texts, min_size=1, max_size=6), st.data())
def test_every_alignment_is_monotone_and_complete(steps, data):
    names = data.draw(st.lists(texts, min_size=len(steps), max_size=15))
    starts = sorted(data.draw(st.lists(st.floats(0, 100), min_size=len(names), max_size=len(names))))
    blocks = [Annotation(start=start, text=name) for start, name in zip(starts, names, strict=True)]
    alignment = align(steps, blocks, Letters(), AlignerSettings())
    inside = [step for step in alignment.assignment if step != OUTSIDE]
    assert inside == sorted(inside)
    assert set(inside) == set(range(len(steps)))
    first = alignment.assignment.index(0)
    assert list(alignment.assignment[first : first + len(inside)]) == inside
    assert len(alignment.assignment) == len(blocks)
    assert all(0 <= confidence <= 1 for confidence in alignment.confidences)


def test_the_largest_recipe_of_the_six_datasets():
    """881 lines, 178 steps."""
    blocks = lines(*["abc"[i // 5 % 3] for i in range(881)])
    alignment = align(["abc"[i % 3] for i in range(178)], blocks, Letters(), AlignerSettings())
    assert max(alignment.assignment) == 177


def test_fewer_lines_than_steps_is_one_sentence(encoder):
    with pytest.raises(DataError, match=r"^annotations: 2 lines for 3 steps; every step needs a line of its own$"):
        align(STEPS, lines("boil", "pour"), encoder, AlignerSettings())


def test_an_empty_recipe_is_one_sentence(encoder):
    with pytest.raises(DataError, match=r"^steps: the recipe has none"):
        align((), lines("boil"), encoder, AlignerSettings())


def test_a_pause_is_time_in_which_no_line_goes_on():
    blocks = [Annotation(start=a, end=b, text="x") for a, b in ((0, 50), (10, 20), (60, 70), (70, 75))]
    assert pauses_between(blocks, SpanSettings()) == pytest.approx(np.log1p([0, 10 / (10 / 3), 0]))


def test_one_long_break_counts_no_more_than_eight_mean_pauses():
    starts = [*range(50), *range(10_000, 10_050)]
    blocks = [Annotation(start=start, end=start + 1, text="x") for start in starts]
    assert pauses_between(blocks, SpanSettings()).max() == pytest.approx(np.log1p(8))
