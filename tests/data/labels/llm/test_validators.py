"""Every answer is either the one mapping it describes, or comes back with exactly what is wrong with it."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prospect.data.labels.llm.validators import read_mapping
from prospect.llm.exchange import InvalidAnswer

RIGHT = '{"mapping": {"S1": ["B1", "B2"], "S2": ["B3"], "S3": ["B4", "B5"]}}'


@st.composite
def assignments(draw: st.DrawFn) -> tuple[int, ...]:
    """Non-decreasing, from 0, no step left out."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=12))
    return tuple(step for step, size in enumerate(sizes) for _ in range(size))


def written(assignment: tuple[int, ...]) -> dict[str, list[str]]:
    mapping: dict[str, list[str]] = {}
    for block, step in enumerate(assignment, 1):
        mapping.setdefault(f"S{step + 1}", []).append(f"B{block}")
    return mapping


def kinds(answer: str, steps: int = 3, blocks: int = 5, finish_reason: str = "stop") -> list[str]:
    with pytest.raises(InvalidAnswer) as invalid:
        read_mapping(answer, steps, blocks, finish_reason)
    return [failure.kind for failure in invalid.value.failures]


@given(
    assignments(), st.randoms(), st.sampled_from(["{}", "```json\n{}\n```", "Sure! {}\nHope it helps {{:", "{{x}} {}"])
)
def test_every_right_mapping_is_read_whatever_its_order_and_surroundings(assignment, random, surroundings):
    mapping = [(step, random.sample(blocks, len(blocks))) for step, blocks in written(assignment).items()]
    random.shuffle(mapping)
    answer = surroundings.format(json.dumps({"mapping": dict(mapping)}))
    assert read_mapping(answer, assignment[-1] + 1, len(assignment)) == assignment


@given(assignments(), st.data())
def test_a_mapping_of_other_ids_never_passes(assignment, data):
    """Any dictionary of existing ids is refused unless it is the sequential, complete one that it reads as."""
    steps, blocks = assignment[-1] + 1, len(assignment)
    ids = st.sampled_from([f"B{number}" for number in range(1, blocks + 1)])
    keys = st.sampled_from([f"S{number}" for number in range(1, steps + 1)])
    mapping = data.draw(st.dictionaries(keys, st.lists(ids, max_size=4)))
    with suppress(InvalidAnswer):
        read = read_mapping(json.dumps({"mapping": mapping}), steps, blocks)
        assert {step: set(members) for step, members in written(read).items()} == {
            step: set(members) for step, members in mapping.items()
        }


@given(assignments(), st.data())
def test_one_change_is_found_and_named(assignment, data):
    mapping = written(assignment)
    step = data.draw(st.sampled_from(sorted(mapping)))
    change = data.draw(st.sampled_from(["missing", "duplicate", "unknown"]))
    if change == "missing":
        mapping[step] = mapping[step][1:]
    elif change == "duplicate":
        mapping[step] = [*mapping[step], mapping[step][0]]
    else:
        mapping[step] = [*mapping[step], f"B{len(assignment) + 1}"]
    assert change in kinds(json.dumps({"mapping": mapping}), assignment[-1] + 1, len(assignment))


@given(st.text(max_size=300) | st.text(alphabet='{}[]":,SB1 ', max_size=300))
def test_no_text_breaks_it(text):
    with pytest.raises(InvalidAnswer) as invalid:  # too short for a mapping of five blocks by chance
        read_mapping(text, 3, 5)
    assert all(failure.feedback.endswith(".") for failure in invalid.value.failures)


@pytest.mark.parametrize(
    ("answer", "kind", "feedback"),
    [
        ("  ", "empty", "The answer was empty"),
        ("I cannot see the video.", "json", "there is no object in it"),
        (RIGHT[:-2], "json", "not valid JSON: Expecting"),
        (RIGHT.replace("]}", ",]}"), "json", "line 1, column"),
        ("{" * 5 + '"a":' * 5, "json", "not valid JSON"),
        ('{"a":' * 5000, "json", "not valid JSON"),
        ('{"S1": ["B1"]}', "structure", 'one key, "mapping"'),
        ('{"mapping": ["B1"]}', "structure", 'one key, "mapping"'),
        ('{"mapping": {"S1": "B1"}}', "structure", '"S1" must be a list'),
        ('{"mapping": {"S1": [1]}}', "structure", '"S1" must be a list'),
        (RIGHT.replace("B3", "B9"), "unknown", "do not exist: B9; use S1 to S3 and B1 to B5"),
        (RIGHT.replace("S3", "S4"), "unknown", "do not exist: S4"),
        (RIGHT.replace('"B3"', '"B3", "B2"'), "duplicate", "more than once: B2"),
        (RIGHT.replace('"S2"', '"S1"'), "duplicate", "S1 appears twice as a key"),
        (RIGHT.replace('"B4", ', ""), "missing", "blocks are missing: B4"),
        (RIGHT.replace('"B3"', "").replace('"B2"', '"B2", "B3"'), "missing", "steps have no block: S2"),
        ('{"mapping": {"S1": ["B1", "B3"], "S2": ["B2"], "S3": ["B4", "B5"]}}', "consecutive", "B2 stands between"),
        (
            '{"mapping": {"S1": ["B3"], "S2": ["B1", "B2"], "S3": ["B4", "B5"]}}',
            "sequential",
            "B1 of S2 comes before B3",
        ),
    ],
)
def test_each_failure_says_what_is_wrong(answer, kind, feedback):
    with pytest.raises(InvalidAnswer, match=feedback.replace("(", r"\(")) as invalid:
        read_mapping(answer, 3, 5)
    assert kind in [failure.kind for failure in invalid.value.failures]


def test_all_wrong_ids_are_told_at_once():
    assert kinds('{"mapping": {"S1": ["B1", "B1", "B7"], "S3": ["B4"]}}') == [
        "unknown",
        "duplicate",
        "missing",
        "missing",
    ]


def test_a_cut_answer_is_named_so_unless_it_can_be_read():
    assert kinds(RIGHT[:30], finish_reason="length") == ["length"]
    assert read_mapping(RIGHT, 3, 5, "length") == (0, 0, 1, 2, 2)


def test_thinking_aloud_ends_with_what_is_meant():
    draft = RIGHT.replace("B3", "B9")
    assert read_mapping(f"<think>Perhaps {draft}? No.</think>\n{RIGHT}", 3, 5) == (0, 0, 1, 2, 2)
