"""Thresholds: which one a curve gives, what few data fall back to, and that the sweep is what a session would do."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prospect.dialogue.schema import Dialogue
from prospect.evaluation.calibration import Calibration, Calibrator, choose, first_maximum
from prospect.evaluation.metrics import evaluate
from prospect.evaluation.settings import CalibrationSettings, EvaluationSettings
from prospect.evaluation.stream import pick_dialogues, spec_of, stream_dialogues
from prospect.evaluation.sweep import Point
from prospect.evaluation.thresholds import shown
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.settings import StreamingSettings
from tests.factories import CONTEXT, features, tea_dialogue, timeline_of, tiny_model, tiny_vocabulary

scores = st.integers(0, 20).map(lambda n: n / 20)


@given(st.lists(scores, min_size=1, max_size=12), st.sampled_from([0.0, 0.1, 1.0]))
def test_what_is_chosen_is_the_first_good_enough_local_maximum(f1: list[float], tolerance: float) -> None:
    chosen = first_maximum(f1, tolerance)
    if chosen is None:
        assert max(f1) == 0
        return
    peaks = [
        i
        for i, value in enumerate(f1)
        if value >= max(f1) - tolerance
        and value > 0
        and next((v for v in reversed(f1[:i]) if v != value), -1) < value
        and next((v for v in f1[i:] if v != value), -1) < value
    ]
    assert f1[chosen] == f1[peaks[0]]
    assert chosen in peaks


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6, unique=True), st.lists(st.integers(0, 19), max_size=6))
def test_an_inverse_u_gives_its_peak_whatever_the_tolerance(rising: list[int], falling: list[int]) -> None:
    peak = 21
    f1 = [*sorted(rising), peak, *sorted(set(falling), reverse=True)]
    assert {first_maximum([v / 21 for v in f1], tolerance) for tolerance in (0, 0.02, 1)} <= {f1.index(peak)}


def test_a_plateau_gives_its_middle_and_a_bump_at_the_beginning_nothing() -> None:
    assert first_maximum([0.2, 0.8, 0.8, 0.8, 0.1]) == 2
    assert first_maximum([0.0, 0.0]) is first_maximum([]) is None
    bumpy = [0.30, 0.31, 0.30, 0.60, 0.50]
    assert (first_maximum(bumpy, 0.01), first_maximum(bumpy, 1)) == (3, 1)


def test_a_data_set_with_too_few_events_gets_what_all_together_get() -> None:
    settings = CalibrationSettings(grid=(0.3, 0.6), min_events=20)

    def curve(f1: tuple[float, float], events: int) -> list[Point]:
        return [Point(threshold, value, value, value, events) for threshold, value in zip((0.3, 0.6), f1, strict=True)]

    curves = {"ego4d": curve((0.5, 0.2), 40), "wtag": curve((0.1, 0.9), 3), "mute": curve((0, 0), 30)}
    chosen, refused = choose({**curves, "default": curve((0.4, 0.5), 73)}, settings)
    assert chosen == {"ego4d": 0.3, "default": 0.6}
    assert refused["wtag"] == "3 in the reference, calibration.min_events=20"
    assert refused["mute"] == "F1 is 0 at every threshold"
    assert shown({"default": {"update": 0.1, "speak": 0.6}, "a": {"speak": 0.3}}) == (
        "a speak 0.3; others speak 0.6, update 0.1"
    )
    for grid in ((), (0.5, 0.4), (0.5, 1.5)):
        with pytest.raises(ValidationError, match="must be probabilities that rise"):
            CalibrationSettings(grid=grid)


def read(dialogue: Dialogue, start: int, stop: int) -> np.ndarray:
    return features(dialogue.video_id, start, stop)


def tea(name: str, **changes: object):
    dialogue = tea_dialogue(name).model_copy(update={"dataset": "kitchen", **changes})
    return dialogue, timeline_of(dialogue)


def test_dialogues_are_picked_from_all_data_sets_one_a_video() -> None:
    placed = [tea(f"v{n}", dataset="big", dialogue_id=f"v{n}#{user}") for n in range(6) for user in range(3)]
    placed.append(tea("w", dataset="small"))
    picked = [dialogue for dialogue, _ in pick_dialogues(placed, 3, minutes=0.25)]
    assert [dialogue.dataset for dialogue in picked] == ["big", "small", "big"]
    assert len({dialogue.video_id for dialogue in picked}) == 3
    assert {dialogue.last_frame for dialogue in picked} == {30}
    assert picked == [dialogue for dialogue, _ in pick_dialogues(placed[::-1], 3, minutes=0.25)]
    assert len(pick_dialogues(placed, None, minutes=5)) == 7


class Alike:
    """All sentences are equal: turns differ in time alone."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return np.ones((len(texts), 1), np.float32)


@pytest.mark.parametrize(("max_sessions", "passes"), [(64, 1), (6, 2), (3, 3)])
def test_the_sweep_gives_what_sessions_with_these_thresholds_give(max_sessions: int, passes: int) -> None:
    """A model of random weights, whose probabilities lie around a half; two data sets, one too small.

    However many dialogues the engine holds at every threshold.
    """
    vocabulary = tiny_vocabulary()
    loaded = tiny_model(vocabulary, seed=3)
    loaded.model.config.thresholds = {"default": {"speak": 0.0, "update": 0.0}}
    streaming = StreamingSettings(cooldown_frames=5, dst_decoder="readout", calibrated=False, max_sessions=max_sessions)
    brief = CONTEXT.model_copy(update={"max_utterance_tokens": 2})
    settings = CalibrationSettings(grid=(0.45, 0.5, 0.55), min_events=8)
    evaluation = EvaluationSettings(bootstrap_samples=1)
    placed = [tea("tea"), tea("tee"), tea("thé", dataset="office")]
    engine = StreamingEngine(loaded, brief, streaming)
    *lines, found = Calibrator(engine, read, settings, evaluation, Alike()).run(placed)
    assert isinstance(found, Calibration)
    assert len(lines) == 2 * passes
    assert lines[-1] == "speak: 3/3 dialogues at 3 thresholds"
    assert not engine.session_ids

    assert {name: {n: points[0].events for n, points in curves.items()} for name, curves in found.curves.items()} == {
        "update": {"kitchen": 12, "office": 6, "default": 18},
        "speak": {"kitchen": 10, "office": 5, "default": 15},
    }
    update = found.thresholds.get("default", {}).get("update", streaming.update_threshold)
    own = found.thresholds.get("kitchen", {}).get("update", update)
    specs = [
        replace(spec_of(*pair), speak_threshold=0.5, update_threshold=own if kitchen else update)
        for pair, kitchen in zip(placed, (True, True, False), strict=True)
    ]
    alone = evaluate(stream_dialogues(engine, placed, read, specs), evaluation, Alike()).overall
    assert found.curves["speak"]["default"][1].f1 == pytest.approx(alone["turn_f1"])
    assert found.curves["speak"]["default"][1].f1 > 0
    assert "office" not in found.thresholds
    assert any(note.startswith("speak of office takes") and "5 in the reference" in note for note in found.notes)
    [nothing] = Calibrator(engine, read, settings, evaluation, Alike()).run([])
    assert nothing.notes == ["no dialogue is held out for validation: the configured thresholds stay"]
