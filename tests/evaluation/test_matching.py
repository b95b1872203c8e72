"""The turn matcher: the published form with its defects, and the corrected one without them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from prospect.evaluation.matching import Match, TurnMatches, match_turns
from prospect.evaluation.settings import MatchingSettings
from tests.evaluation.encoders import Opposite, SharedWords

MODES = ("compat", "corrected")
WORDS = SharedWords()


def match(generated, reference, frames=40, mode="corrected", dataset="assembly101", encoder=WORDS):
    return match_turns(generated, reference, frames, encoder, MatchingSettings(mode=mode), dataset)


@pytest.mark.parametrize("mode", MODES)
def test_every_utterance_goes_to_the_reference_nearest_in_words_and_time(mode):
    generated = {4: "attach wheel", 11: "tighten screw", 30: "hello"}
    found = match(generated, {5: "attach wheel", 10: "tighten screw", 20: "lift chassis"}, mode=mode)
    assert [(pair.generated, pair.reference) for pair in found.matched] == [(4, 5), (11, 10)]
    assert [pair.similarity for pair in found.matched] == pytest.approx([1, 1])
    assert (found.missed, found.redundant) == ((20,), (30,))


def test_scipy_drops_edges_that_cost_exactly_nothing():
    """The origin of the published defect: three edges on the diagonal, of which the free one is not there."""
    cost = np.array([[0.0, 1.0], [1.0, 0.5]])
    assert csr_matrix(cost).nnz == 3
    assert list(min_weight_full_bipartite_matching(csr_matrix(cost))[1]) == [1, 0]


def test_the_published_matcher_punishes_a_perfect_answer_and_the_corrected_one_does_not():
    """proassist.md, appendix A, row 1: (3, 10, 20, 30) becomes (2, 10, 20, 30)."""
    reference = {3: "stop", 10: "now attach it", 20: "turn it over", 30: "that looks right"}
    published = match(reference, reference, mode="compat")
    assert published.missed == (3,)
    assert published.redundant == (3,)
    corrected = match(reference, reference)
    assert [(pair.generated, pair.reference) for pair in corrected.matched] == [(f, f) for f in reference]
    assert corrected.missed == corrected.redundant == ()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("shift", "matched"), [(-5, False), (-4, True), (8, True), (9, False)])
def test_the_window_reaches_twice_as_far_ahead_as_back(mode, shift, matched):
    """Assembly101: the reference may lie 2 s before and 4 s after what was said; frames are half seconds."""
    found = match({20: "attach wheel"}, {20 + shift: "attach wheel"}, mode=mode)
    assert bool(found.matched) is matched
    assert bool(found.missed) is bool(found.redundant) is not matched


def test_opposite_sentences_are_alike_only_in_the_published_matcher():
    assert match({5: "no"}, {5: "yes"}, mode="compat", encoder=Opposite()).redundant == (5,), "cost 0: edge dropped"
    assert match({6: "no"}, {5: "yes"}, mode="compat", encoder=Opposite()).matched == (Match(6, 5, 1.0),)
    assert match({6: "no"}, {5: "yes"}, encoder=Opposite()).matched == ()


@pytest.mark.parametrize(
    ("dataset", "window"),
    [
        ("assembly101", (-2.0, 4.0)),
        ("EPIC_Kitchens", (-1.5, 3.0)),
        ("ego4d/narration", (-2.5, 2.5)),
        ("ego4d-goalstep", (-4.0, 8.5)),
        ("sample", (-2.5, 2.5)),
    ],
)
def test_windows_are_found_by_the_datasets_name(dataset, window):
    assert MatchingSettings().window(dataset) == window


def test_windows_can_be_overridden_by_dataset_and_for_all_others():
    custom = MatchingSettings(windows={"assembly_101": (-1, 1), "default": (0, 9)})
    assert custom.window("assembly101") == (-1, 1)
    assert custom.window("sample") == (0, 9)
    with pytest.raises(ValidationError, match="must contain 0"):
        MatchingSettings(windows={"wtag": (1, 3)})


def test_only_the_corrected_window_forgives_decimals():
    """0.29 s at 100 fps are 29 frames; 0.29 * 100 is 28.999999999999996."""
    for mode, matched in (("compat", False), ("corrected", True)):
        custom = MatchingSettings(mode=mode, windows={"default": (-0.29, 0.29)})
        found = match_turns({50: "stop"}, {79: "stop"}, 100, WORDS, custom, fps=100)
        assert bool(found.matched) is matched


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("generated", "reference", "frames"),
    [
        ({}, {}, 10),
        ({}, {3: "stop"}, 10),
        ({3: "stop"}, {}, 10),
        ({0: "stop"}, {0: "stop"}, 1),
        ({0: "stop", 1: "stop"}, {0: "stop", 1: "stop"}, 2),
        (dict.fromkeys(range(5), "stop"), {2: "stop"}, 3),
        (dict.fromkeys(range(9), "stop"), dict.fromkeys(range(9), "stop"), 9),
    ],
    ids=["nothing", "silent", "no reference", "one frame", "two frames", "longer than the video", "all frames"],
)
def test_degenerate_videos_do_not_raise(mode, generated, reference, frames):
    found = match(generated, reference, frames, mode)
    assert len(found.matched) + len(found.missed) == len(reference)
    assert len(found.matched) + len(found.redundant) == len(generated)


UTTERANCES = st.dictionaries(st.integers(0, 29), st.sampled_from(["stop", "go on", "turn it over", "attach the wheel"]))


@settings(max_examples=150, deadline=None)
@given(UTTERANCES, UTTERANCES, st.sampled_from(MODES), st.sampled_from(["assembly101", "ego4d", "sample"]))
def test_matching_is_one_to_one_and_the_counts_add_up(generated, reference, mode, dataset):
    found = match(generated, reference, 30, mode, dataset)
    assert isinstance(found, TurnMatches)
    assert sorted([pair.generated for pair in found.matched] + list(found.redundant)) == sorted(generated)
    assert sorted([pair.reference for pair in found.matched] + list(found.missed)) == sorted(reference)


@settings(max_examples=100, deadline=None)
@given(UTTERANCES)
def test_the_reference_matches_itself_frame_by_frame(reference):
    found = match(reference, reference, 30)
    assert [(pair.generated, pair.reference) for pair in found.matched] == [(f, f) for f in sorted(reference)]


RECORDED = json.loads((Path(__file__).parents[1] / "fixtures" / "matching.json").read_text())
"""What the published `find_match` gave for similarities made by hand; see tests/fixtures/README.md."""


class Similarities:
    """An encoder whose cosines are those of a table, to the bit: rows are generated texts, columns references."""

    def __init__(self, table: list[list[float]]) -> None:
        self._table = np.array(table, dtype=np.float32)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        units = np.eye(self._table.shape[1], dtype=np.float32)
        known = {f"g{i}": row for i, row in enumerate(self._table)} | {f"r{j}": row for j, row in enumerate(units)}
        return np.stack([known[text] for text in texts])


@pytest.mark.parametrize("case", RECORDED, ids=[f"{i}-{case['dataset']}" for i, case in enumerate(RECORDED)])
def test_compat_gives_what_the_published_matcher_gave(case):
    generated = {frame: f"g{i}" for i, frame in enumerate(case["generated"])}
    reference = {frame: f"r{j}" for j, frame in enumerate(case["reference"])}
    encoder = Similarities(case["similarities"])
    found = match(generated, reference, case["frames"], "compat", case["dataset"], encoder)
    assert [[pair.generated, pair.reference] for pair in found.matched] == case["matched"]
    assert (list(found.missed), list(found.redundant)) == (case["missed"], case["redundant"])
