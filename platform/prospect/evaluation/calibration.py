"""Calibrate thresholds by data set: stream held-out dialogues at every threshold of a grid and choose by F1.

`update` comes first, by the F1 of transitions within the evaluation's tolerance: unlike the share of frames in the
right state, F1 falls when the model updates too often and when it updates too seldom. Then, with that threshold,
`speak` by the F1 of turns, as in ProAssist. One engine runs all thresholds of several dialogues at once, as sessions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np

from prospect.dialogue.schema import Dialogue
from prospect.evaluation.records import Placed, VideoDecisions
from prospect.evaluation.settings import CalibrationSettings, EvaluationSettings
from prospect.evaluation.stream import ReadDialogue, pick_dialogues, spec_of, stream_dialogues
from prospect.evaluation.sweep import Curves, Decides, threshold_curves
from prospect.evaluation.thresholds import DEFAULT
from prospect.similarity import SentenceEncoder
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.types import SessionSpec


@dataclass(frozen=True)
class Calibration:
    """Chosen thresholds, and the curves they were chosen from."""

    thresholds: dict[str, dict[str, float]] = field(default_factory=dict)
    """`speak` and `update` by data set and for `DEFAULT`; missing ones were not calibrated."""
    curves: dict[Decides, Curves] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """Why a threshold could not be calibrated, one clause each."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def first_maximum(f1: Sequence[float], tolerance: float = 0.0) -> int | None:
    """Index of the first local maximum within `tolerance` of the best F1, or the middle of a plateau.

    For a curve that rises and then falls (ProAssist's inverse U) this is the peak, whatever the tolerance. A curve
    from few dialogues may have several peaks; `tolerance` skips low ones at its beginning. None: F1 is 0 everywhere.
    """
    best, start = max(f1, default=0.0), 0
    for value, plateau in groupby(f1):
        stop = start + len(list(plateau))
        rises = start == 0 or f1[start - 1] < value
        falls = stop == len(f1) or f1[stop] < value
        if 0 < value >= best - tolerance and rises and falls:
            return (start + stop - 1) // 2
        start = stop
    return None


def choose(curves: Curves, settings: CalibrationSettings) -> tuple[dict[str, float], dict[str, str]]:
    """Thresholds by data set and for `DEFAULT`, and for other data sets the reason why they have none."""
    chosen, refused = {}, {}
    for name, points in curves.items():
        index = first_maximum([point.f1 for point in points], settings.tolerance)
        if points[0].events < settings.min_events:
            refused[name] = f"{points[0].events} in the reference, calibration.min_events={settings.min_events}"
        elif index is None:
            refused[name] = "F1 is 0 at every threshold"
        else:
            chosen[name] = points[index].threshold
    return chosen, refused


@dataclass
class Calibrator:
    """Finds the thresholds of one model.

    Args:
        engine: with room for a session for each threshold of the grid, or a multiple of that, and for all frames of a
            dialogue; it must ignore the model's own thresholds.
        read: reads features of a dialogue's frames.
        settings: the grid, and how much is streamed.
        evaluation: how turns and transitions are matched.
        encoder: sentence vectors for the turn matcher.
        decides: decisions to calibrate; leave out heads that were never trained.
    """

    engine: StreamingEngine
    read: ReadDialogue
    settings: CalibrationSettings
    evaluation: EvaluationSettings
    encoder: SentenceEncoder
    decides: Sequence[Decides] = ("update", "speak")

    def run(self, placed: Sequence[Placed]) -> Iterator[str | Calibration]:
        """Yields lines of progress, and the calibration last.

        Raises:
            SessionError: a dialogue cannot be streamed.
        """
        picked = self._picked(placed)
        calibration = Calibration()
        if not picked:
            yield replace(calibration, notes=["no dialogue is held out for validation: the configured thresholds stay"])
            return
        for name in self.decides:
            streamed: list[list[VideoDecisions]] = []
            while len(streamed) < len(picked):
                batch = picked[len(streamed) : len(streamed) + self._dialogues_at_once]
                streamed += self._stream(name, batch, calibration.thresholds)
                yield f"{name}: {len(streamed)}/{len(picked)} dialogues at {len(self.settings.grid)} thresholds"
            by_threshold = [*zip(*streamed, strict=True)]
            curves = threshold_curves(name, self.settings.grid, by_threshold, self.evaluation, self.encoder)
            chosen, refused = choose(curves, self.settings)
            calibration = _extended(calibration, name, curves, chosen, refused)
        yield calibration

    def _picked(self, placed: Sequence[Placed]) -> list[Placed]:
        datasets = sorted({dialogue.dataset for dialogue, _ in placed})
        groups = ([pair for pair in placed if pair[0].dataset == dataset] for dataset in datasets)
        settings = self.settings
        return [pair for group in groups for pair in pick_dialogues(group, settings.videos, settings.minutes)]

    @property
    def _dialogues_at_once(self) -> int:
        """Dialogues that the engine can stream at once, each at every threshold."""
        return max(1, self.engine.capacity // len(self.settings.grid))

    def _stream(
        self, name: Decides, batch: Sequence[Placed], found: Mapping[str, Mapping[str, float]]
    ) -> Iterator[list[VideoDecisions]]:
        """Stream each dialogue at every threshold for `name`, and at the one in `found` for the other decision."""
        grid, specs = self.settings.grid, []
        for dialogue, timeline in batch:
            known = {**found.get(DEFAULT, {}), **found.get(dialogue.dataset, {})}
            spec = spec_of(dialogue, timeline)
            if "update" not in self.decides:
                spec = replace(spec, track=False)
            specs += [_with_thresholds(spec, {**known, name: threshold}) for threshold in grid]
        frames: dict[tuple[str, int, int], np.ndarray] = {}

        def read(dialogue: Dialogue, start: int, stop: int) -> np.ndarray:
            key = dialogue.video_id, start, stop
            if key not in frames:
                frames[key] = self.read(dialogue, start, stop)
            return frames[key]

        streamed = stream_dialogues(self.engine, [pair for pair in batch for _ in grid], read, specs)
        return (streamed[at : at + len(grid)] for at in range(0, len(streamed), len(grid)))


def _with_thresholds(spec: SessionSpec, thresholds: Mapping[str, float]) -> SessionSpec:
    return replace(spec, speak_threshold=thresholds.get("speak"), update_threshold=thresholds.get("update"))


def _extended(
    calibration: Calibration, name: Decides, curves: Curves, chosen: Mapping[str, float], refused: Mapping[str, str]
) -> Calibration:
    thresholds = {dataset: dict(values) for dataset, values in calibration.thresholds.items()}
    for dataset, threshold in chosen.items():
        thresholds.setdefault(dataset, {})[name] = threshold
    rest = f"takes {chosen[DEFAULT]:g}, the threshold of all data sets" if DEFAULT in chosen else "stays as configured"
    notes = [
        f"{name} of {'all data sets' if dataset == DEFAULT else dataset} {rest} ({why})"
        for dataset, why in refused.items()
    ]
    return Calibration(thresholds, {**calibration.curves, name: curves}, [*calibration.notes, *notes])
