"""How the words of matched utterances agree: BLEU, CIDEr, ROUGE-L and METEOR, without Java.

ProAssist reports BLEU-1 to 4, CIDEr and METEOR over its correct pairs by pycocoevalcap, whose tokenizer and METEOR are
Java programs. These are the same families by other tokenizers and other code, so **no number of this module may stand
in a column beside a published one**; each name says who computed it. Words are lower-cased, as there.

They look at correct pairs alone: a system that dares one easy sentence reaches the best of each. ProAssist therefore
weights them by the Jaccard index of the turns: X_w = JI * X, with JI the `jaccard_index` of
`prospect.evaluation.measures.turns`.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from importlib.metadata import version
from statistics import fmean

import numpy as np

from prospect.evaluation.tally import Floats, Ratio, Sums, Tally, ratio

Pairs = Sequence[tuple[str, str]]
"""(generated, reference)."""

NGRAM = tuple[str, ...]

_ORDERS = (1, 2, 3, 4)
_SIGMA = 6.0
_SCALE = 10.0


def text_scores(pairs: Pairs) -> dict[str, float | None]:
    """Scores of `pairs` by name with library, version and tokenizer.

    None where undefined: without a pair, and CIDEr-D of fewer than two.

    - BLEU-n, 0 to 1: geometric mean of the clipped 1- to n-gram precisions, summed over all pairs, times the brevity
      penalty min(1, exp(1 - r/c)); not smoothed, so it is 0 where no n-gram agrees (Papineni et al., ACL 2002, section
      2.3; sacrebleu signature `case:lc|eff:no|tok:13a|smooth:none`).
    - CIDEr-D, 0 to 10: `cider_d`.
    - ROUGE-L, 0 to 1: mean of F1 from the longest common subsequence, P = LCS/generated, R = LCS/reference (Lin, ACL
      workshop 2004, section 3.1, with beta = 1; pycocoevalcap has beta = 1.2).
    - METEOR without synonyms, 0 to 1: mean of (1 - 0.5 (chunks/matches)^3) * P R / (0.9 P + 0.1 R) over equal words and
      equal Porter stems (Lavie and Agarwal, WMT 2007, section 2). No package carries WordNet, the third stage, and
      METEOR 1.5 has paraphrases and other weights, so it scores lower than METEOR.
    """
    [sums] = sum_pairs([pairs])
    values = {short: metric(Tally.of(sums)) for short, metric in METRICS.items()}
    return {name: None if np.isnan(values[short]) else float(values[short]) for short, name in score_names().items()}


def sum_pairs(groups: Sequence[Pairs]) -> list[Sums]:
    """What each group of pairs adds to the sums behind `METRICS`.

    The sums of BLEU, ROUGE-L and METEOR depend on the pair alone. CIDEr-D weighs n-grams by how few references of all
    groups have them: a bootstrap over groups keeps those weights, and draws the pairs' scores.
    """
    words = [(_words(generated), _words(reference)) for pairs in groups for generated, reference in pairs]
    cider = iter(_cider_scores(words) if len(words) > 1 else [])
    found = []
    for pairs in groups:
        each = [_pair_sums(*pair) for pair in pairs]
        sums = {name: sum(one[name] for one in each) for name in _SUMS}
        scores = [score for _, score in zip(pairs, cider, strict=False)]
        found.append({**sums, "cider_d": sum(scores), "cider_pairs": float(len(scores))})
    return found


def score_names() -> dict[str, str]:
    """Full names of the scores by short name, in the order of `text_scores`."""
    sacrebleu, rouge, nltk = (version(library) for library in ("sacrebleu", "rouge-score", "nltk"))
    return {f"bleu{order}": f"bleu{order} (sacrebleu {sacrebleu}, 13a)" for order in _ORDERS} | {
        "cider_d": "cider_d (prospect, 13a)",
        "rouge_l": f"rouge_l (rouge-score {rouge}, letters and digits)",
        "meteor": f"meteor without synonyms (nltk {nltk}, 13a)",
    }


def cider_d(pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> float | None:
    """CIDEr-D over tokens with one reference each; None for fewer than two pairs, where every idf is 0.

    10 * mean over pairs and n = 1..4 of exp(-d^2 / (2 sigma^2)) * sum min(g, r) r / (|g| |r|), with vectors g and r of
    tf * log(N / df), df counted over the N references, sigma = 6 (Vedantam et al., CVPR 2015, equations 2 and 4). The
    length difference d counts bigrams, as in the authors' code. Ours, because the packages that have it bring 100 MB of
    Java, or the models of audio captioning; equal to that of pycocoevalcap 1.2 for equal tokens.
    """
    return fmean(_cider_scores(pairs)) if len(pairs) > 1 else None


def _cider_scores(pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[float]:
    """CIDEr-D of each pair."""
    counts = [(_ngrams(generated), _ngrams(reference)) for generated, reference in pairs]
    frequency = Counter(ngram for _, reference in counts for ngram in reference)
    total = math.log(len(pairs))

    def weigh(ngrams: Counter[NGRAM]) -> dict[NGRAM, float]:
        return {ngram: tf * (total - math.log(max(1, frequency[ngram]))) for ngram, tf in ngrams.items()}

    scores = []
    for generated, reference in counts:
        length = _num_bigrams(generated) - _num_bigrams(reference)
        penalty = math.exp(-(length**2) / (2 * _SIGMA**2))
        found, wanted = weigh(generated), weigh(reference)
        scores.append(_SCALE * penalty * fmean(_clipped_cosine(found, wanted, order) for order in _ORDERS))
    return scores


def _ngrams(words: Sequence[str]) -> Counter[NGRAM]:
    """Counts of all 1- to 4-grams."""
    return Counter(tuple(words[start : start + order]) for order in _ORDERS for start in range(len(words) - order + 1))


def _num_bigrams(ngrams: Counter[NGRAM]) -> int:
    return sum(count for ngram, count in ngrams.items() if len(ngram) == 2)


def _clipped_cosine(found: dict[NGRAM, float], wanted: dict[NGRAM, float], order: int) -> float:
    """Cosine over n-grams of one order, in which no n-gram of `found` weighs more than in `wanted`."""
    left = {ngram: weight for ngram, weight in found.items() if len(ngram) == order}
    right = {ngram: weight for ngram, weight in wanted.items() if len(ngram) == order}
    norms = math.hypot(*left.values()) * math.hypot(*right.values())
    dot = sum(min(weight, right.get(ngram, 0.0)) * right.get(ngram, 0.0) for ngram, weight in left.items())
    return dot / norms if norms else 0.0


@lru_cache(maxsize=100_000)
def _pair_sums(generated: str, reference: str) -> Mapping[str, float]:
    """All sums of one pair but those of CIDEr-D."""
    counts = _bleu().sentence_score(generated, [reference])
    return {
        "pairs": 1.0,
        "length": counts.sys_len,
        "reference_length": counts.ref_len,
        **{f"matches{order}": counts.counts[order - 1] for order in _ORDERS},
        **{f"ngrams{order}": counts.totals[order - 1] for order in _ORDERS},
        "rouge_l": _rouge_scorer().score(reference, generated)["rougeL"].fmeasure,
        "meteor": _meteor(_words(generated), _words(reference)),
    }


_SUMS = (
    "pairs", "length", "reference_length", "rouge_l", "meteor",
    *(f"{name}{order}" for name in ("matches", "ngrams") for order in _ORDERS),
)  # fmt: skip


def _bleu_of(longest: int) -> Ratio:
    def bleu(t: Tally) -> Floats:
        precisions = np.stack(
            [ratio(t[f"matches{order}"], t[f"ngrams{order}"], 0.0) for order in range(1, longest + 1)]
        )
        with np.errstate(divide="ignore"):  # no agreement: log 0 is -inf, and its exponential 0
            mean = np.exp(np.log(precisions).mean(axis=0))
        shorter = 1 - ratio(t["reference_length"], t["length"], np.inf)
        return np.where(t["pairs"] > 0, mean * np.exp(np.minimum(shorter, 0.0)), np.nan)

    return bleu


METRICS: dict[str, Ratio] = {
    **{f"bleu{order}": _bleu_of(order) for order in _ORDERS},
    "cider_d": lambda t: ratio(t["cider_d"], t["cider_pairs"]),
    "rouge_l": lambda t: ratio(t["rouge_l"], t["pairs"]),
    "meteor": lambda t: ratio(t["meteor"], t["pairs"]),
}
"""Ratios of the sums of `sum_pairs`, by short name."""


@cache
def _bleu():  # type: ignore[no-untyped-def]  # sacrebleu's own class, imported late
    from sacrebleu.metrics import BLEU

    return BLEU(lowercase=True, tokenize="13a", smooth_method="none", effective_order=True)


@cache
def _rouge_scorer():  # type: ignore[no-untyped-def]  # rouge-score's own class, imported late
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=False)


class _NoWordNet:
    """In the place of nltk's WordNet, whose data no package carries: knows no synonym."""

    def synsets(self, word: str) -> tuple[()]:
        return ()


def _meteor(generated: Sequence[str], reference: Sequence[str]) -> float:
    from nltk.translate.meteor_score import single_meteor_score

    return float(single_meteor_score(reference, generated, wordnet=_NoWordNet()))


@lru_cache(maxsize=100_000)
def _words(text: str) -> tuple[str, ...]:
    """Lower-case tokens of WMT's mteval-v13a."""
    return tuple(_tokenizer()(text.lower()).split())


@cache
def _tokenizer():  # type: ignore[no-untyped-def]  # sacrebleu's own class, imported late
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()
