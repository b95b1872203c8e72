"""Scores of utterances: which were right, when, and in which words.

Turns are matched as in ProAssist (`prospect.evaluation.matching`). With G utterances of the system, R of the
reference, P pairs of the matcher and C of them more alike than the threshold:

    precision C / G      recall C / R      F1 2 C / (G + R)      Jaccard index C / (G + R - P)
    missing rate (R - P) / R      redundant rate (G - P) / G

(pro-assist/ProAssist, mmassist/eval). They are 0 where nobody speaks, as ProAssist's tables need a number; time and
similarity of correct pairs are undefined without one.
"""

import re
from collections.abc import Collection, Mapping, Sequence

from prospect.corpus.tasks import DATASET, content_words
from prospect.dialogue.timeline import FPS
from prospect.errors import DataError
from prospect.evaluation.matching import Match, TurnMatches, match_turns
from prospect.evaluation.records import VideoDecisions
from prospect.evaluation.settings import EvaluationSettings, MatchingSettings
from prospect.evaluation.tally import Floats, Ratio, Sums, Tally, ratio
from prospect.similarity import SentenceEncoder

SIMILARITIES = tuple(number / 100 for number in range(50, 100, 5))
"""Thresholds of the curve of turn F1; its area is their mean, as COCO's AP is over ten overlaps."""
TOLERANCES = (0, 1, 2, 3)
"""Seconds of the accuracy curve, as in StreamingBench's figure of proactive output."""


def said(video: VideoDecisions, settings: EvaluationSettings) -> dict[int, str]:
    """The system's utterances by frame; a lone full stop is silence to the published matcher."""
    if settings.matching.mode == "compat":
        return {frame: text for frame, text in video.utterances.items() if text.strip() != "."}
    return video.utterances


def match_video(
    video: VideoDecisions,
    settings: EvaluationSettings,
    encoder: SentenceEncoder | None,
    matching: MatchingSettings | None = None,
) -> TurnMatches:
    """Match a dialogue's utterances; `matching` replaces that of the settings.

    Raises:
        DataError: utterances must be matched, and `encoder` is missing.
    """
    generated, reference = said(video, settings), video.reference_utterances
    if not generated or not reference:
        return TurnMatches(missed=tuple(sorted(reference)), redundant=tuple(sorted(generated)))
    if encoder is None:
        raise DataError("evaluation: utterances cannot be compared without a sentence encoder", field="encoder")
    matching, total = matching or settings.matching, video.timeline.num_frames
    return match_turns(generated, reference, total, encoder, matching, video.dialogue.dataset)


def correct_pairs(matches: TurnMatches, settings: EvaluationSettings) -> list[Match]:
    """Pairs more alike than the threshold."""
    return [pair for pair in matches.matched if pair.similarity > settings.similarity_threshold]


def count_turns(
    video: VideoDecisions, matches: TurnMatches, settings: EvaluationSettings, encoder: SentenceEncoder | None
) -> Sums:
    """Sums of one dialogue."""
    generated, reference = said(video, settings), video.reference_utterances
    correct = correct_pairs(matches, settings)
    drawn = video.dialogue.dataset == DATASET  # elsewhere nobody knows which words carry the content
    return {
        "generated": len(generated),
        "reference": len(reference),
        "paired": len(matches.matched),
        "correct": len(correct),
        "similarity": sum(pair.similarity for pair in correct),
        "distance": sum(abs(pair.generated - pair.reference) for pair in correct) / FPS,
        "exact": sum(pair.generated == pair.reference for pair in correct),
        "verbatim": sum(generated[pair.generated] == reference[pair.reference] for pair in correct),
        "content_right": drawn * sum(_same_content(generated, reference, pair) for pair in correct),
        "content_spoken": drawn * (len(generated) + len(reference)),
        "dead": _dead_frames(video, [*matches.missed], generated) / FPS,
        **{_above(t): sum(pair.similarity > t for pair in matches.matched) for t in SIMILARITIES},
        **_within(video, settings, encoder),
    }


def count_labels(video: VideoDecisions, met: Collection[int]) -> dict[str, tuple[int, int]]:
    """Label -> utterances of the reference that have it, and those of them in `met`, frames of the reference.

    A source's label such as `initiative|instruction,feedback` is three.
    """
    found: dict[str, tuple[int, int]] = {}
    for frame in video.reference_utterances:
        for label in filter(None, re.split(r"[|,]", video.timeline[frame].labels)):
            due, right = found.get(label, (0, 0))
            found[label] = due + 1, right + (frame in met)
    return found


def _within(video: VideoDecisions, settings: EvaluationSettings, encoder: SentenceEncoder | None) -> Sums:
    """Correct pairs by distance, matched within the widest tolerance instead of the data set's window."""
    widest = float(max(TOLERANCES))
    matching = settings.matching.model_copy(update={"windows": {video.dialogue.dataset: (-widest, widest)}})
    pairs = correct_pairs(match_video(video, settings, encoder, matching), settings)
    off = [abs(pair.generated - pair.reference) / FPS for pair in pairs]
    return {f"within_{seconds}s": sum(distance <= seconds for distance in off) for seconds in TOLERANCES}


def _same_content(generated: Mapping[int, str], reference: Mapping[int, str], pair: Match) -> bool:
    return content_words(generated[pair.generated]) == content_words(reference[pair.reference])


def _dead_frames(video: VideoDecisions, missed: Sequence[int], generated: Mapping[int, str]) -> int:
    """Frames between a missed utterance and the next one of the system, or the end."""
    dead: set[int] = set()
    for frame in missed:
        until = min((spoken for spoken in generated if spoken > frame), default=video.frames.stop)
        dead.update(range(frame, until))
    return len(dead)


def _above(threshold: float) -> str:
    return f"above_{threshold:g}"


def _f1_above(threshold: float) -> Ratio:
    return lambda t: ratio(2 * t[_above(threshold)], t["generated"] + t["reference"], 0.0)


def _area(tally: Tally) -> Floats:
    points = [_f1_above(threshold)(tally) for threshold in SIMILARITIES]
    return sum(points[1:], points[0]) / len(points)


def _accuracy_within(seconds: int) -> Ratio:
    return lambda t: ratio(t[f"within_{seconds}s"], t["reference"])


METRICS: dict[str, Ratio] = {
    "turn_precision": lambda t: ratio(t["correct"], t["generated"], 0.0),
    "turn_recall": lambda t: ratio(t["correct"], t["reference"], 0.0),
    "turn_f1": lambda t: ratio(2 * t["correct"], t["generated"] + t["reference"], 0.0),
    "content_f1": lambda t: ratio(2 * t["content_right"], t["content_spoken"]),
    "turn_f1_area": _area,
    "jaccard_index": lambda t: ratio(t["correct"], t["generated"] + t["reference"] - t["paired"], 0.0),
    "missing_rate": lambda t: ratio(t["reference"] - t["paired"], t["reference"], 0.0),
    "redundant_rate": lambda t: ratio(t["generated"] - t["paired"], t["generated"], 0.0),
    "semantic_score": lambda t: ratio(t["similarity"], t["correct"]),
    "time_diff": lambda t: ratio(t["distance"], t["correct"]),
    "exact_frame_rate": lambda t: ratio(t["exact"], t["correct"]),
    "verbatim_rate": lambda t: ratio(t["verbatim"], t["correct"]),
    **{f"accuracy_within_{seconds}s": _accuracy_within(seconds) for seconds in TOLERANCES},
    "utterances_per_minute": lambda t: ratio(60 * t["generated"], t["seconds"]),
    "reference_utterances_per_minute": lambda t: ratio(60 * t["reference"], t["seconds"]),
    "dead_time": lambda t: ratio(t["dead"], t["seconds"]),
}
"""`content_f1` counts a pair where its sentences name the same objects, actions and tools (sample corpus only).
`accuracy_within_Ns` is the share of the reference's utterances that a correct one meets within N seconds
(StreamingBench's time_accuracy and answer_accuracy together; our model is not polled). `dead_time` is the share of the
video that lies between a missed utterance and the next one of the system."""


def similarity_curve(tally: Tally) -> list[tuple[float, float]]:
    """(threshold, turn F1), rising thresholds."""
    return [(threshold, float(_f1_above(threshold)(tally))) for threshold in SIMILARITIES]


def tolerance_curve(tally: Tally) -> list[tuple[float, float]]:
    """(seconds, accuracy)."""
    return [(float(seconds), float(_accuracy_within(seconds)(tally))) for seconds in TOLERANCES]
