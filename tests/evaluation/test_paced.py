"""The latency-aware mode: time passes by the engine's steps alone, here by as much as each test says."""

import json
from dataclasses import replace
from itertools import count

import numpy as np
import pytest

from prospect.dialogue.schema import Turn
from prospect.dialogue.state import TaskState, Transition
from prospect.dialogue.timeline import FPS
from prospect.evaluation.pace_record import PacedDialogue, PacedRun, TimedDecision
from prospect.evaluation.paced import stream_paced
from prospect.evaluation.records import Placed, VideoDecisions
from prospect.evaluation.settings import EvaluationSettings, PacedSettings
from prospect.evaluation.stream import stream_dialogues
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.settings import StreamingSettings
from prospect.streaming.types import Decision
from prospect.streaming.waiting import FRAMES_AHEAD
from tests.evaluation.test_lineage import LINEAGE
from tests.factories import CONTEXT, TALKATIVE, features, tea_dialogue, timeline_of, tiny_model, tiny_vocabulary

MODEL = tiny_model(tiny_vocabulary())
SETTINGS = TALKATIVE.model_copy(update={"dst_decoder": "readout"})
SHORT = CONTEXT.model_copy(update={"max_utterance_tokens": 3})
"""A random model babbles."""


QUIET = SETTINGS.model_copy(update={"speak_threshold": 1.0, "update_threshold": 1.0, "calibrated": False})
ONE_AHEAD = QUIET.model_copy(update={"max_waiting_frames": 1})
"""The engine takes a frame when it has decided the one before."""


def tea(name: str = "tea", frames: int = 36) -> Placed:
    """The first frames of a video of 60."""
    dialogue = tea_dialogue(name).model_copy(update={"last_frame": frames})
    return dialogue, timeline_of(dialogue)


def read(dialogue, start, stop):
    return features(dialogue.video_id, start, stop)


def engine(settings: StreamingSettings = SETTINGS) -> StreamingEngine:
    return StreamingEngine(MODEL, SHORT, settings)


def run(step_s: float, *placed: Placed, settings: StreamingSettings = SETTINGS, **paced: float) -> PacedRun:
    """Stream with an engine whose every step takes `step_s` seconds."""
    clock = count(0.0, step_s).__next__
    return stream_paced(engine(settings), placed or [tea()], read, PacedSettings(**paced), clock)


def unpaced(*placed: Placed) -> list[VideoDecisions]:
    room = SETTINGS.model_copy(update={"max_waiting_frames": 1000})
    return [found for pair in placed for found in stream_dialogues(engine(room), [pair], read)]


def test_a_model_that_is_fast_enough_decides_and_scores_as_without_latency() -> None:
    dialogues = [tea("tea", 20), tea("pot", 12)]
    found = run(1e-6, *dialogues, sessions=2)
    plain = unpaced(*dialogues)
    assert any(video.utterances for video in plain), "something is said"
    seen = [known.decisions for known in found.known()]
    assert [[_without_numbers(d) for d in each] for each in seen] == [
        [_without_numbers(d) for d in video.decisions] for video in plain
    ]
    for known_ones, video in zip(seen, plain, strict=True):
        assert [d.p_speak for d in known_ones] == pytest.approx([d.p_speak for d in video.decisions], abs=1e-4)
    assert found.summary()["dropped"] == 0
    decided = [[timed.decision.frame for timed in each.decisions] for each in found.dialogues]
    assert decided == [[*range(20)], [*range(12)]]


def _without_numbers(decision: Decision) -> Decision:
    """All but the probabilities, whose last bits depend on how frames are batched."""
    return replace(decision, p_speak=0.0, p_update=0.0)


def test_frames_are_decided_in_order_and_none_before_it_arrives() -> None:
    (only,) = run(0.05, tea(frames=12)).dialogues
    assert [timed.arrived for timed in only.decisions] == [(k + 1) / FPS for k in range(12)]
    assert all(timed.arrived < (timed.spoken or timed.decided) <= timed.decided for timed in only.decisions)
    assert [timed.decided for timed in only.decisions] == sorted(timed.decided for timed in only.decisions)


@pytest.mark.parametrize("speed", [2, 4])
def test_speed_shortens_the_time_between_frames(speed: float) -> None:
    (only,) = run(1e-6, tea(frames=8), speed=speed).dialogues
    assert [timed.arrived for timed in only.decisions] == pytest.approx([(k + 1) / FPS / speed for k in range(8)])


@pytest.mark.parametrize("limit", [{"max_waiting_frames": 3}, {"max_delay_s": 0.9}])
def test_frames_are_dropped_as_the_server_does_it(limit: dict[str, float]) -> None:
    """A step of a second feeds the context, each later one decides a frame; two frames arrive meanwhile.

    Frame 1 waits at 1 s. At 2 s frame 3 comes: now four frames wait, and frame 1 has waited for a second. Frame 0 is in
    the engine, so that frame 1 goes, although frame 0 is older.
    """
    (only,) = run(1.0, tea(frames=10), settings=ONE_AHEAD, **limit).dialogues
    assert only.dropped == [1, 3, 5, 7]
    assert [(timed.decision.frame, timed.decided) for timed in only.decisions] == [
        (0, 2), (2, 3), (4, 4), (6, 5), (8, 6), (9, 7)
    ]  # fmt: skip


def test_what_the_engine_has_ahead_is_not_dropped() -> None:
    slow = run(3.0, tea(frames=60), settings=QUIET, speed=4, max_delay_s=5)
    (only,) = slow.dialogues
    assert min(only.dropped) >= FRAMES_AHEAD
    assert sorted([*only.dropped, *(timed.decision.frame for timed in only.decisions)]) == [*range(60)]
    assert slow.summary()["dropped_share"] == len(only.dropped) / 60
    assert run(3.0, tea(frames=60), settings=QUIET, speed=4, max_delay_s=1e3).summary()["dropped"] == 0


def test_what_the_user_said_at_a_dropped_frame_joins_the_next() -> None:
    """As above, frame 3 is dropped: what was said at it (1.5 s) comes with frame 4, the third that the engine gets."""
    pushed: list[str] = []

    class Listening(StreamingEngine):
        def push_text(self, session_id: str, text: str) -> None:
            pushed.append(text)
            super().push_text(session_id, text)

        def push_frame(self, session_id: str, embedding: np.ndarray, fingerprint: str | None = None) -> int:
            pushed.append("frame")
            return super().push_frame(session_id, embedding, fingerprint)

    dialogue, _ = tea(frames=10)
    turns = (Turn(role="user", time=1.5, text="which cup"), Turn(role="user", time=2.0, text="the red one?"))
    asking = dialogue.model_copy(update={"turns": turns})
    listening, settings = Listening(MODEL, SHORT, ONE_AHEAD), PacedSettings(max_waiting_frames=3)
    stream_paced(listening, [(asking, timeline_of(asking))], read, settings, count(0.0, 1.0).__next__)
    assert pushed == ["frame", "frame", "which cup", "the red one?", "frame", "frame", "frame", "frame"]


def test_another_session_s_work_delays_a_decision() -> None:
    quiet = (run(0.2, tea(frames=10), settings=QUIET, sessions=sessions) for sessions in (1, 4))
    alone, among = (found.summary()["latency_ms"] for found in quiet)
    assert among["mean"] > alone["mean"]
    assert among["number"] == alone["number"] == 10, "load is not recorded"


def test_every_dialogue_is_recorded_once_in_its_order_whatever_the_number_of_sessions() -> None:
    short = [tea("a", 4), tea("b", 0), tea("c", 9), tea("d", 2)]
    for sessions in (1, 3, 6):
        found = run(0.05, *short, settings=QUIET, sessions=sessions)
        assert [each.dialogue.video_id for each in found.dialogues] == ["a", "b", "c", "d"]
        assert [len(each.decisions) for each in found.dialogues] == [4, 0, 9, 2]
    assert run(0.05, short[1]).dialogues[0].decisions == ()


def test_the_engine_is_left_without_sessions() -> None:
    used = engine()
    stream_paced(used, [tea(frames=3)], read, PacedSettings(sessions=3), count(0.0, 0.01).__next__)
    assert not used.session_ids


# What a user knows


TWO = TaskState.initial(3)
STARTED, _ = TWO.apply((Transition.of(0, "start"),), "strict")


def decided(frame: int, after: float, spoken: float | None = None, **changes: object) -> TimedDecision:
    """A decision known `after` seconds, at 1x."""
    decision = replace(Decision(frame, 0.6, 0.2, TWO), **changes)
    arrived = (frame + 1) / FPS
    return TimedDecision(decision, arrived, arrived + after, None if spoken is None else arrived + spoken)


def known(*timed: TimedDecision, speed: float = 1.0) -> VideoDecisions:
    return PacedDialogue(*tea(frames=60), timed).known(speed)


def test_what_is_known_later_counts_later() -> None:
    """An utterance where its first token came, the state where the whole decision did."""
    late = decided(4, 1.7, spoken=0.8, utterance="boil water", state=STARTED, delta=(Transition.of(0, "start"),))
    found = known(late)
    assert found.utterances == {5: "boil water"}
    assert found.events() == [(7, Transition.of(0, "start"))]
    assert [found.by_frame[frame].state for frame in (4, 6, 7, 59)] == [TWO, TWO, STARTED, STARTED]
    assert [frame for frame in found.frames if found.by_frame[frame].p_speak] == [5], "as it begins to speak"
    assert [frame for frame in found.frames if found.by_frame[frame].p_update] == [7]
    assert known(late, speed=2).utterances == {7: "boil water"}, "twice as fast, the video has gone on twice as far"
    assert known(decided(4, 0.49, spoken=0.49, utterance="now")).utterances == {4: "now"}, (
        "before the next frame is due"
    )


def test_utterances_of_one_moment_stand_on_frames_of_their_own() -> None:
    first, second = decided(4, 1.2, 1.2, utterance="one"), decided(5, 0.7, 0.7, utterance="two")
    assert known(first, second).utterances == {6: "one", 7: "two"}


def test_an_utterance_after_the_video_s_end_is_kept() -> None:
    assert known(decided(59, 3.0, 3.0, utterance="late")).utterances == {65: "late"}


def test_a_dropped_frame_has_no_decision_and_the_state_stands() -> None:
    found = known(decided(0, 0.0, state=STARTED, readout=STARTED), decided(3, 0.0, state=STARTED, readout=STARTED))
    assert [found.by_frame[frame].state for frame in range(4)] == [STARTED] * 4
    assert [found.by_frame[frame].p_speak for frame in range(4)] == [0.6, 0.0, 0.0, 0.6]


# The result


def test_the_result_says_what_it_is_and_promotes_nothing() -> None:
    paced = {**PacedSettings(speed=2, sessions=16).model_dump(), "device": "CPU A"}
    lineage = replace(LINEAGE, paced=paced)
    assert next(lineage.marks()).startswith("latency-aware at 2x speed, 16 sessions at once: the scores depend on this")
    assert lineage.obstacle == "its score depends on this machine's speed"
    keys = {LINEAGE.key, lineage.key, *(replace(LINEAGE, paced={**paced, **change}).key for change in (
        {"speed": 4}, {"sessions": 1}, {"device": "CPU B"}, {"max_delay_s": 5}))}  # fmt: skip
    assert len(keys) == 6


def test_the_measured_times_are_json_with_their_number() -> None:
    found = run(0.02, tea(frames=6), tea("pot", 6), sessions=2)
    written = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert written["step_ms"]["p50"] == pytest.approx(20)
    assert written["step_ms"]["number"] == len(found.steps)
    assert written["latency_ms"]["number"] == written["frames"] == 12
    assert 0 < written["busy"] <= 1
    assert [len(each["decided"]) for each in written["dialogues"]] == [6, 6]
    empty = PacedRun([], PacedSettings(), [], 0.0).to_dict()
    assert json.loads(json.dumps(empty, allow_nan=False))["step_ms"]["p50"] is None


def test_the_mode_is_off_by_default() -> None:
    assert EvaluationSettings().paced is None
