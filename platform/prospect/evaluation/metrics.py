"""Scores of streamed dialogues against their references: turns, transitions, states and head decisions."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from prospect.corpus.tasks import DATASET, content_words
from prospect.dialogue.state import StatePolicy, TaskState
from prospect.dialogue.timeline import FPS
from prospect.errors import DataError
from prospect.evaluation.events import match_events
from prospect.evaluation.intervals import Interval, metric_interval, percentile_interval, resample
from prospect.evaluation.matching import Match, match_turns
from prospect.evaluation.records import VideoDecisions
from prospect.evaluation.settings import EvaluationSettings
from prospect.evaluation.tally import METRICS, Tally
from prospect.similarity import SentenceEncoder

INTERVALS = ("turn_f1", "dst_f1", "joint_goal_accuracy", "readout_joint_goal_accuracy")
"""The metrics that come with a confidence interval."""


@dataclass(frozen=True)
class SliceScores:
    """The scores of some dialogues; `scores["turn_f1"]` is one metric."""

    metrics: dict[str, float | None]
    """All of `METRICS`, and the average precision of both heads; None where undefined."""
    intervals: dict[str, Interval | None]
    """Over videos, for `INTERVALS`."""
    counts: dict[str, float]
    """The sums behind the metrics, by the field names of `Tally`."""

    def __getitem__(self, metric: str) -> float | None:
        return self.metrics[metric]


@dataclass(frozen=True)
class Scores:
    """The result of an evaluation."""

    overall: SliceScores
    by_dataset: dict[str, SliceScores]
    by_user_type: dict[str, SliceScores]
    videos: dict[str, Tally]
    """Sums by video, from which systems are compared pair by pair."""

    @property
    def macro_turn_f1(self) -> float | None:
        """The mean over datasets, as in ProAssist's tables."""
        values = [found for scores in self.by_dataset.values() if (found := scores["turn_f1"]) is not None]
        return float(np.mean(values)) if values else None

    def logged(self) -> dict[str, float]:
        """The defined overall metrics by stable name, for a tracker."""
        return {name: value for name, value in self.overall.metrics.items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; an undefined metric is null."""
        return {
            "overall": asdict(self.overall),
            "macro_turn_f1": self.macro_turn_f1,
            "by_dataset": {name: asdict(scores) for name, scores in self.by_dataset.items()},
            "by_user_type": {name: asdict(scores) for name, scores in self.by_user_type.items()},
            "videos": {name: {m: _number(METRICS[m](tally)) for m in INTERVALS} for name, tally in self.videos.items()},
        }


def evaluate(
    videos: Sequence[VideoDecisions], settings: EvaluationSettings | None = None, encoder: SentenceEncoder | None = None
) -> Scores:
    """Scores every dialogue once and sums up: overall, by dataset and by user type.

    Args:
        videos: the streamed dialogues, in any order.
        settings: the evaluation section.
        encoder: sentence vectors for the turn matcher; may be missing where no system utterance meets
            a reference with one, as in a comparison of states.

    Raises:
        DataError: utterances must be matched, and `encoder` is missing.
    """
    settings = settings or EvaluationSettings()
    videos = sorted(videos, key=lambda video: (video.video, video.dialogue.dialogue_id))
    counted = [(video, tally_video(video, settings, encoder)) for video in videos]

    def grouped(key: Callable[[VideoDecisions], str]) -> dict[str, SliceScores]:
        names = sorted({key(video) for video in videos})
        return {name: _slice([pair for pair in counted if key(pair[0]) == name], settings) for name in names}

    return Scores(
        overall=_slice(counted, settings),
        by_dataset=grouped(lambda video: video.dialogue.dataset),
        by_user_type=grouped(lambda video: video.dialogue.user_type or "unknown"),
        videos=_by_video(counted),
    )


def paired_interval(
    first: Scores, second: Scores, metric: str = "joint_goal_accuracy", settings: EvaluationSettings | None = None
) -> Interval | None:
    """By how much `first` is better than `second`, each draw taking the same videos of both; None if undefined.

    Raises:
        DataError: the two were not scored on the same videos.
    """
    settings = settings or EvaluationSettings()
    if first.videos.keys() != second.videos.keys():
        only = sorted(first.videos.keys() ^ second.videos.keys())[0]
        raise DataError(f"scores: video {only!r} was scored for one of the two systems only", field="videos")
    if not first.videos:
        return None
    function = METRICS[metric]
    value = function(Tally.total(first.videos.values())) - function(Tally.total(second.videos.values()))
    drawn = [resample(scores.videos, settings.bootstrap_samples, settings.seed) for scores in (first, second)]
    return percentile_interval(value, function(drawn[0]) - function(drawn[1]), settings.confidence)


def tally_video(video: VideoDecisions, settings: EvaluationSettings, encoder: SentenceEncoder | None) -> Tally:
    """The sums of one dialogue."""
    frames = video.frames
    sums = {
        "dialogues": 1,
        "frames": len(frames),
        "undecided": sum(frame not in video.by_frame for frame in frames),
        "seconds": len(frames) / FPS,
        **_turn_sums(video, settings, encoder),
        **_event_sums(video, settings),
        **_state_sums(video, settings.state_policy),
    }
    return Tally.from_columns(np.array([sums[field.name] for field in fields(Tally)], dtype=np.float64))


def _turn_sums(
    video: VideoDecisions, settings: EvaluationSettings, encoder: SentenceEncoder | None
) -> dict[str, float]:
    generated, reference = video.utterances, video.reference_utterances
    if settings.matching.mode == "compat":
        generated = {frame: text for frame, text in generated.items() if text.strip() != "."}
    drawn = video.dialogue.dataset == DATASET  # elsewhere nobody knows which words carry the content
    sums = dict.fromkeys(("paired", "correct", "similarity", "distance", "exact", "content_right"), 0.0)
    if generated and reference:
        if encoder is None:
            raise DataError("evaluation: utterances cannot be compared without a sentence encoder", field="encoder")
        dataset, total = video.dialogue.dataset, video.timeline.num_frames
        pairs = match_turns(generated, reference, total, encoder, settings.matching, dataset).matched
        correct = [pair for pair in pairs if pair.similarity > settings.similarity_threshold]
        sums = {
            "paired": len(pairs),
            "correct": len(correct),
            "similarity": sum(pair.similarity for pair in correct),
            "distance": sum(abs(pair.generated - pair.reference) for pair in correct) / FPS,
            "exact": sum(pair.generated == pair.reference for pair in correct),
            "content_right": drawn * sum(_same_content(generated, reference, pair) for pair in correct),
        }
    spoken = {"generated": len(generated), "reference": len(reference)}
    return sums | spoken | {"content_spoken": drawn * sum(spoken.values())}


def _same_content(generated: Mapping[int, str], reference: Mapping[int, str], pair: Match) -> bool:
    return content_words(generated[pair.generated]) == content_words(reference[pair.reference])


def _event_sums(video: VideoDecisions, settings: EvaluationSettings) -> dict[str, float]:
    generated, reference = video.events(), video.reference_events(settings.state_policy)
    pairs = match_events(generated, reference, settings.event_tolerance * FPS)
    return {
        "events_generated": len(generated),
        "events_reference": len(reference),
        "events_matched": len(pairs),
        "latency": sum(decided - due for decided, due in pairs) / FPS,
    }


def _state_sums(video: VideoDecisions, policy: StatePolicy) -> dict[str, float]:
    """A recipe that is empty or without times leaves every sum at zero, and so the state metrics undefined."""
    steps = video.timeline.num_steps if video.dialogue.has_dst_labels else 0
    frames = video.frames if steps else range(0)
    reference = video.timeline.states(policy)
    tracked = {frame: decision.state for frame, decision in video.by_frame.items()}
    readouts = {f: decision.readout for f, decision in video.by_frame.items() if decision.readout is not None}
    return {
        "state_frames": len(frames),
        "state_right": sum(tracked.get(frame) == reference[frame] for frame in frames),
        "slots": steps * len(frames),
        "slots_right": sum(_equal_slots(tracked.get(frame), reference[frame]) for frame in frames),
        "readout_frames": len(frames) if readouts else 0,
        "readout_right": sum(readouts.get(frame) == reference[frame] for frame in frames),
    }


def _equal_slots(state: TaskState | None, reference: TaskState) -> int:
    return 0 if state is None else sum(a == b for a, b in zip(state.steps, reference.steps, strict=False))


def average_precision(probabilities: Sequence[float], labels: Sequence[bool]) -> float | None:
    """Area under precision over recall, each distinct probability one threshold; None without a positive label."""
    truth = np.asarray(labels, dtype=bool)
    if not truth.any():
        return None
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(truth, probabilities))


def _head_precisions(videos: Iterable[VideoDecisions], policy: StatePolicy) -> dict[str, float | None]:
    """Average precision of both heads over all decided frames, against the reference's very frames."""
    speak: list[tuple[float, bool]] = []
    update: list[tuple[float, bool]] = []
    for video in videos:
        updated = {frame for frame, _ in video.reference_events(policy)}
        decided = [(frame, video.by_frame[frame]) for frame in video.frames if frame in video.by_frame]
        speak += [(decision.p_speak, frame in video.reference_utterances) for frame, decision in decided]
        update += [(decision.p_update, frame in updated) for frame, decision in decided]
    return {
        "speak_average_precision": average_precision([p for p, _ in speak], [label for _, label in speak]),
        "update_average_precision": average_precision([p for p, _ in update], [label for _, label in update]),
    }


def _by_video(counted: Sequence[tuple[VideoDecisions, Tally]]) -> dict[str, Tally]:
    groups: dict[str, list[Tally]] = defaultdict(list)
    for video, tally in counted:
        groups[video.video].append(tally)
    return {name: Tally.total(tallies) for name, tallies in sorted(groups.items())}


def _slice(counted: Sequence[tuple[VideoDecisions, Tally]], settings: EvaluationSettings) -> SliceScores:
    total = Tally.total(tally for _, tally in counted)
    metrics = {name: _number(function(total)) for name, function in METRICS.items()}
    heads = _head_precisions((video for video, _ in counted), settings.state_policy)
    return SliceScores(
        metrics=metrics | heads,
        intervals=_intervals(_by_video(counted), settings),
        counts={field.name: float(getattr(total, field.name)) for field in fields(Tally)},
    )


def _intervals(videos: Mapping[str, Tally], settings: EvaluationSettings) -> dict[str, Interval | None]:
    if not videos:
        return dict.fromkeys(INTERVALS)
    drawn = resample(videos, settings.bootstrap_samples, settings.seed)
    return {metric: metric_interval(metric, videos, drawn, settings.confidence) for metric in INTERVALS}


def _number(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)
