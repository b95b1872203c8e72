"""Which annotation lines are blocks."""

from hypothesis import given
from hypothesis import strategies as st

from prospect.data.labels.blocks import blocks_of
from prospect.dialogue.schema import Annotation


def line(start: float, end: float | None, text: str, depth: int = 0) -> Annotation:
    return Annotation(start=start, end=end, text=text, depth=depth)


HOLOASSIST = (
    line(6.3, 9.3, "change the shift position"),
    line(6.7, 8.5, "shift lever", 1),
    line(18.5, 60.2, "attach the shift arm"),
    line(19.1, 22.0, "grab shift arm", 1),
    line(22.0, 25.6, "lift shift arm", 1),
    line(61.0, None, "look at it", 1),
    line(69.3, 92.3, "grab some bolts"),
)


def texts(blocks) -> list[str]:
    return [block.text for block in blocks]


def test_a_container_stands_for_its_parts():
    assert texts(blocks_of(HOLOASSIST)) == ["change the shift position", "attach the shift arm", "grab some bolts"]


def test_a_line_within_another_ones_time_is_its_part():
    flat = (
        line(0, 10, "open fridge"),
        line(2, 3, "take milk"),
        line(4, None, "take eggs"),
        line(9, 12, "close fridge"),
    )
    assert texts(blocks_of(flat)) == ["open fridge", "close fridge"]


def test_the_longest_container_is_opened_first_and_keeps_what_lies_before_its_parts():
    blocks = blocks_of(HOLOASSIST, at_least=4)
    opened = ["attach the shift arm", "grab shift arm", "lift shift arm", "look at it"]
    assert texts(blocks) == ["change the shift position", *opened, "grab some bolts"]
    assert (blocks[1].start, blocks[1].end) == (18.5, 19.1)


def test_containers_inside_containers_open_one_after_the_other():
    cooking = (
        line(0, 100, "flatten dough"),
        line(0, None, "knead", 1),
        line(20, 90, "cook bread"),
        line(20, None, "bake", 1),
        line(30, None, "flip", 1),
    )
    assert texts(blocks_of(cooking, at_least=1)) == ["flatten dough"]
    assert texts(blocks_of(cooking, at_least=2)) == ["knead", "cook bread"]
    assert texts(blocks_of(cooking, at_least=9)) == ["knead", "bake", "flip"]


lines = st.builds(
    lambda start, length, depth: line(start, None if length is None else start + length, "x", depth),
    st.integers(0, 20),
    st.none() | st.integers(0, 20),
    st.integers(0, 1),
)


@given(st.lists(lines, max_size=15), st.integers(0, 20))
def test_blocks_are_in_order_and_cover_every_start(annotations, at_least):
    blocks = blocks_of(annotations, at_least)
    assert [block.start for block in blocks] == sorted(block.start for block in blocks)
    assert bool(blocks) == bool(annotations)
    assert len(blocks) >= len(blocks_of(annotations))
    if blocks:
        assert blocks[0].start == min(annotation.start for annotation in annotations)
