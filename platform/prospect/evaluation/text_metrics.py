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
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from statistics import fmean

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
    names = score_names()
    if not pairs:
        return dict.fromkeys(names.values())
    words = [(_words(generated), _words(reference)) for generated, reference in pairs]
    scores: dict[str, float | None] = {f"bleu{order}": _bleu(pairs, order) for order in _ORDERS}
    scores |= {"cider_d": cider_d(words), "rouge_l": _rouge_l(pairs), "meteor": _meteor(words)}
    return {name: scores[key] for key, name in names.items()}


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
    if len(pairs) < 2:
        return None
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
        scores.append(penalty * fmean(_clipped_cosine(found, wanted, order) for order in _ORDERS))
    return _SCALE * fmean(scores)


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


def _bleu(pairs: Pairs, order: int) -> float:
    from sacrebleu.metrics import BLEU

    metric = BLEU(lowercase=True, tokenize="13a", smooth_method="none", max_ngram_order=order)
    generated, references = zip(*pairs, strict=True)
    return metric.corpus_score(list(generated), [list(references)]).score / 100


def _rouge_l(pairs: Pairs) -> float:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    return fmean(scorer.score(reference, generated)["rougeL"].fmeasure for generated, reference in pairs)


class _NoWordNet:
    """In the place of nltk's WordNet, whose data no package carries: knows no synonym."""

    def synsets(self, word: str) -> tuple[()]:
        return ()


def _meteor(pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> float:
    from nltk.translate.meteor_score import single_meteor_score

    return fmean(single_meteor_score(reference, generated, wordnet=_NoWordNet()) for generated, reference in pairs)


def _words(text: str) -> tuple[str, ...]:
    """Lower-case tokens of WMT's mteval-v13a."""
    return tuple(_tokenizer()(text.lower()).split())


@cache
def _tokenizer():  # type: ignore[no-untyped-def]  # sacrebleu's own class, imported late
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()
