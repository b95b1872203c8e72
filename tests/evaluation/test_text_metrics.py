"""Scores of words against values computed by hand, from the formulas that `text_scores` cites."""

import math
import random

import pytest

from prospect.evaluation.text_metrics import cider_d, score_names, sum_pairs, text_scores

KITE = ("First, cut the kite.", "First, wrap the kite.")
"""Six tokens each, by 13a: five agree, in two chunks."""


def scores(*pairs: tuple[str, str]) -> dict[str, float | None]:
    """By short name."""
    found = text_scores(pairs)
    return {short: found[name] for short, name in score_names().items()}


def test_a_sentence_with_one_wrong_word() -> None:
    found = scores(KITE)
    assert found["bleu1"] == pytest.approx(5 / 6)
    assert found["bleu2"] == pytest.approx(math.sqrt(5 / 6 * 3 / 5))
    assert found["bleu3"] == pytest.approx((5 / 6 * 3 / 5 * 1 / 4) ** (1 / 3))
    assert found["bleu4"] == 0
    assert found["rouge_l"] == pytest.approx(3 / 4)  # "first the kite" of four words
    assert found["meteor"] == pytest.approx((1 - 0.5 * (2 / 5) ** 3) * 5 / 6)


def test_bleu_sums_over_pairs_before_it_divides_and_punishes_short_sentences() -> None:
    assert scores(KITE, ("Done", "Done"))["bleu1"] == pytest.approx(6 / 7)
    assert scores(("cut the", "cut the kite now"))["bleu1"] == pytest.approx(math.exp(1 - 4 / 2))


def test_meteor_takes_equal_stems_and_no_synonyms() -> None:
    assert scores(("wrapping kites", "wrapped kite"))["meteor"] == pytest.approx(1 - 0.5 / 2**3)
    assert scores(("automobile", "car"))["meteor"] == 0


def test_case_does_not_count() -> None:
    found = scores(("WRAP the kite now", "wrap the Kite now"), ("stir soup for long", "stir soup for LONG"))
    assert found == pytest.approx({**dict.fromkeys(found, 1.0), "cider_d": 10.0, "meteor": 1 - 0.5 / 4**3})


def test_cider_weighs_words_by_how_few_references_have_them() -> None:
    """In two references an n-gram of one has idf ln 2, and one of both has none."""
    assert cider_d([(["a", "b"], ["a", "c"]), (["d"], ["d"])]) == pytest.approx(10 * (1 / 2 / 4 + 1 / 4) / 2)
    assert cider_d([(["x", "a"], ["x", "a"]), (["x"], ["x"])]) == pytest.approx(10 * (2 / 4 + 0) / 2)


def test_cider_punishes_another_length() -> None:
    """By two bigrams: exp(-2^2 / (2 * 6^2)); "a" is one of three words, all of weight ln 2."""
    first = math.exp(-4 / 72) / math.sqrt(3) / 4
    assert cider_d([(["a", "b", "c"], ["a"]), (["d"], ["d"])]) == pytest.approx(10 * (first + 1 / 4) / 2)


def test_what_is_undefined_is_none() -> None:
    assert set(scores().values()) == {None}
    assert scores(KITE)["cider_d"] is None
    assert set(scores(("", "Stir the soup."), ("", "Wait.")).values()) == {0}


def test_bleu_is_that_of_sacrebleu_over_the_whole_corpus() -> None:
    from sacrebleu.metrics import BLEU

    pairs = [KITE, ("Stir the soup.", "Now stir the soup, please."), ("Wait!", "Wait."), ("", "Done.")]
    for order in (1, 2, 3, 4):
        metric = BLEU(lowercase=True, tokenize="13a", smooth_method="none", max_ngram_order=order)
        generated, references = zip(*pairs, strict=True)
        whole = metric.corpus_score(list(generated), [list(references)]).score / 100
        assert scores(*pairs)[f"bleu{order}"] == pytest.approx(whole), order


def test_sums_of_groups_add_up_to_those_of_all_pairs() -> None:
    groups = [[KITE], [], [("Stir the soup.", "Now stir the soup, please."), ("Wait!", "Wait.")]]
    [whole] = sum_pairs([[pair for pairs in groups for pair in pairs]])
    parts = sum_pairs(groups)
    assert {name: sum(part[name] for part in parts) for name in whole} == pytest.approx(whole)
    assert whole["pairs"] == whole["cider_pairs"] == 3


def test_the_order_of_pairs_does_not_matter() -> None:
    pairs = [KITE, ("Stir the soup.", "Now stir the soup, please."), ("Wait!", "Wait.")]
    shuffled = random.Random(0).sample(pairs, len(pairs))
    assert text_scores(pairs) == pytest.approx(text_scores(shuffled))


def test_a_name_says_library_version_and_tokenizer() -> None:
    names = score_names()
    assert names["bleu4"].startswith("bleu4 (sacrebleu 2.")
    assert names["bleu4"].endswith(", 13a)")
    assert "without synonyms" in names["meteor"]
