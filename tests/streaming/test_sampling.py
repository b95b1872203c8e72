"""What a text goes on with."""

from collections import Counter

import pytest
import torch

from prospect.streaming.session.sampling import RandomState, TextLimits, most_probable, next_token
from prospect.streaming.settings import GenerationSettings

LIMITS = TextLimits(max_tokens=5, stop_ids=frozenset({0}), never=(1,))
LOGITS = torch.tensor([9.0, 9.5, 1.0, 2.0, 0.0, -4.0])
GREEDY = GenerationSettings()


def drawn(settings: GenerationSettings, first: bool = True, count: int = 2000) -> Counter:
    randomness = RandomState(0)
    return Counter(next_token(LOGITS, LIMITS, first, settings, randomness) for _ in range(count))


def test_the_most_probable_token_is_taken_but_no_control_token_and_no_stop_at_the_start():
    assert next_token(LOGITS, LIMITS, True, GREEDY, RandomState(0)) == 3
    assert next_token(LOGITS, LIMITS, False, GREEDY, RandomState(0)) == 0
    assert most_probable(LOGITS, (5, 2, 4)) == 2
    assert most_probable(torch.zeros(6), (4, 2)) == 4


def test_tokens_are_drawn_as_often_as_they_are_probable():
    shares = drawn(GenerationSettings(decoding="sampled", temperature=1.0, top_p=1.0))
    expected = torch.softmax(LOGITS[2:], -1)
    assert not set(shares) & {0, 1}
    for token, share in enumerate(expected.tolist(), 2):
        assert shares[token] / 2000 == pytest.approx(share, abs=0.03)


def test_top_p_leaves_the_improbable_out_and_temperature_sharpens():
    assert set(drawn(GenerationSettings(decoding="sampled", temperature=1.0, top_p=0.8))) == {2, 3}
    assert set(drawn(GenerationSettings(decoding="sampled", temperature=1.0, top_p=0.01))) == {3}
    assert drawn(GenerationSettings(decoding="sampled", temperature=0.1, top_p=1.0))[3] > 1990
    assert drawn(GenerationSettings(decoding="sampled", top_p=0.5), first=False)[0] == 2000


def test_random_numbers_depend_on_the_seed_and_on_how_many_were_drawn():
    one = RandomState(7)
    numbers = [one.draw() for _ in range(1000)]
    later = RandomState(7, draws=990)
    assert [later.draw() for _ in range(10)] == numbers[990:]
    assert RandomState(8).draw() != numbers[0]
    assert all(0 <= number < 1 for number in numbers)
    assert sum(numbers) / 1000 == pytest.approx(0.5, abs=0.04)
