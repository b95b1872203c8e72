"""The oracle and its rival, scored with the packaged sentence encoder."""

import pytest

from prospect.evaluation.baselines import oracle, right_time_wrong_step
from prospect.evaluation.metrics import evaluate
from prospect.similarity import SentenceSimilarity


@pytest.fixture(scope="module")
def encoder() -> SentenceSimilarity:
    return SentenceSimilarity()


def test_the_oracle_is_perfect_with_the_real_encoder(encoder, references):
    scores = evaluate([oracle(*reference) for reference in references], encoder=encoder).overall
    assert (scores["turn_f1"], scores["time_diff"], scores["exact_frame_rate"]) == (1.0, 0.0, 1.0)


def test_a_wrong_steps_words_score_below_the_oracle_with_the_real_encoder(encoder, tea, toy):
    scores = evaluate([right_time_wrong_step(*reference) for reference in (tea, toy)], encoder=encoder).overall
    assert scores["turn_f1"] < 1.0
