"""Monotone paths against every path there is."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from prospect.data.labels.chain import best_path, marginals


@st.composite
def tables(draw):
    """Scores of blocks on steps and of boundaries, small enough to write down all paths."""
    steps = draw(st.integers(1, 4))
    blocks = draw(st.integers(steps, 8))
    numbers = st.integers(-20, 20).map(lambda value: value / 4)  # exact sums, so that equal paths are equal
    scores = draw(arrays.arrays(np.float64, (blocks, steps), elements=numbers))
    return scores, draw(arrays.arrays(np.float64, blocks - 1, elements=numbers))


def all_paths(blocks: int, steps: int) -> np.ndarray:
    """[P, B] every path: a choice of K - 1 of the B - 1 boundaries."""
    chosen = combinations(range(1, blocks), steps - 1)
    return np.array([np.searchsorted(borders, np.arange(blocks), side="right") for borders in chosen])


def score_of(path: np.ndarray, scores: np.ndarray, boundaries: np.ndarray) -> float:
    return scores[np.arange(len(path)), path].sum() + boundaries[np.diff(path) > 0].sum()


@given(tables())
def test_the_best_path_is_monotone_complete_and_anchored(table):
    path = best_path(*table)
    steps = table[0].shape[1]
    assert (path[0], path[-1]) == (0, steps - 1)
    assert set(np.diff(path)) <= {0, 1}


@given(tables())
def test_no_path_scores_more_than_the_best(table):
    scores, boundaries = table
    best = max(score_of(path, scores, boundaries) for path in all_paths(*scores.shape))
    assert score_of(best_path(scores, boundaries), scores, boundaries) == best


@given(tables())
def test_marginals_are_sums_over_all_paths(table):
    scores, boundaries = table
    paths = all_paths(*scores.shape)
    weights = np.exp([score_of(path, scores, boundaries) for path in paths])
    found = marginals(scores, boundaries)
    assert found.log_total == pytest.approx(np.log(weights.sum()))
    of_step = [(weights[:, None] * (paths == step)).sum(0) for step in range(scores.shape[1])]
    assert found.steps == pytest.approx(np.stack(of_step, 1) / weights.sum(), abs=1e-9)
    ends = (weights[:, None] * np.diff(paths, axis=1)).sum(0) / weights.sum()
    assert found.boundaries == pytest.approx(ends, abs=1e-9)
