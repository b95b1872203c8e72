"""The latency-aware mode: time passes by the engine's steps alone, here by as much as each test says."""

import json
from dataclasses import replace
from itertools import count

import pytest

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
from tests.evaluation.test_lineage import LINEAGE
from tests.factories import CONTEXT, TALKATIVE, features, tea_dialogue, timeline_of, tiny_model, tiny_vocabulary

MODEL = tiny_model(tiny_vocabulary())
SETTINGS = TALKATIVE.model_copy(update={"dst_decoder": "readout"})
SHORT = CONTEXT.model_copy(update={"max_utterance_tokens": 6})
"""A random model babbles."""


def tea(name: str = "tea") -> Placed:
    dialogue = tea_dialogue(name)
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
    dialogues = [tea(name) for name in ("tea", "pot", "cup")]
    found = run(1e-6, *dialogues, sessions=2)
    plain = unpaced(*dialogues)
    assert any(video.utterances for video in plain), "something is said"
    assert [known.utterances for known in found.known()] == [video.utterances for video in plain]
    assert [known.events() for known in found.known()] == [video.events() for video in plain]
    states = [[decision.state for decision in video.decisions] for video in plain]
    assert [[decision.state for decision in known.decisions] for known in found.known()] == states
    assert found.summary()["dropped"] == 0
    assert [[timed.decision.frame for timed in each.decisions] for each in found.dialogues] == [[*range(60)]] * 3


def test_frames_are_decided_in_order_and_none_before_it_arrives() -> None:
    (only,) = run(0.05).dialogues
    assert [timed.arrived for timed in only.decisions] == [(k + 1) / FPS for k in range(60)]
    assert all(timed.arrived < (timed.spoken or timed.decided) <= timed.decided for timed in only.decisions)
    assert [timed.decided for timed in only.decisions] == sorted(timed.decided for timed in only.decisions)


@pytest.mark.parametrize("speed", [2, 4])
def test_speed_shortens_the_time_between_frames(speed: float) -> None:
    (only,) = run(1e-6, speed=speed).dialogues
    assert [timed.arrived for timed in only.decisions] == pytest.approx([(k + 1) / FPS / speed for k in range(60)])


def test_a_slow_engine_drops_by_the_server_s_rule_and_every_frame_is_decided_or_dropped_once() -> None:
    """16 frames are ahead in the engine; of the others none waits for more than the limit, the oldest goes first."""
    slow = run(2.0, max_delay_s=5, speed=4)
    (only,) = slow.dialogues
    decided = [timed.decision.frame for timed in only.decisions]
    assert only.dropped
    assert sorted([*decided, *only.dropped]) == [*range(60)]
    assert decided == sorted(decided)
    assert list(only.dropped) == sorted(only.dropped), "the oldest first"
    assert min(only.dropped) >= 16, "what the engine has is decided"
    assert slow.summary()["dropped_share"] == len(only.dropped) / 60
    patient = run(2.0, max_delay_s=1000, speed=4)
    assert patient.summary()["dropped"] == 0


def test_more_frames_than_may_wait_are_dropped_however_short_they_have_waited() -> None:
    (only,) = run(2.0, max_delay_s=1000, max_waiting_frames=20, speed=4).dialogues
    assert only.dropped
    (none,) = run(2.0, max_delay_s=1000, max_waiting_frames=60, speed=4).dialogues
    assert not none.dropped


def test_what_the_user_said_at_a_dropped_frame_joins_the_next() -> None:
    """The question at 14.3 s (frame 28) is heard although its frame is dropped."""
    heard: list[str] = []

    class Listening(StreamingEngine):
        def push_text(self, session_id: str, text: str) -> None:
            heard.append(text)
            super().push_text(session_id, text)

    settings = PacedSettings(speed=8, max_delay_s=1)
    listening = Listening(MODEL, SHORT, SETTINGS)
    (only,) = stream_paced(listening, [tea()], read, settings, count(0.0, 1.5).__next__).dialogues
    assert 28 in only.dropped
    assert heard == ["I want to make tea.", "Which cup?"]
    assert only.refused_texts == 0


def test_another_session_s_work_delays_a_decision() -> None:
    alone, among = (run(0.1, tea(), sessions=sessions).summary()["latency_ms"] for sessions in (1, 8))
    assert among["mean"] > alone["mean"]
    assert among["number"] == alone["number"] == 60, "load is not recorded"


def test_every_dialogue_is_recorded_once_in_its_order_whatever_the_number_of_sessions() -> None:
    short = [(dialogue.model_copy(update={"last_frame": last}), line) for last, (dialogue, line) in
             [(4, tea("a")), (0, tea("b")), (9, tea("c")), (2, tea("d"))]]  # fmt: skip
    for sessions in (1, 3, 6):
        found = run(0.05, *short, sessions=sessions)
        assert [each.dialogue.video_id for each in found.dialogues] == ["a", "b", "c", "d"]
        assert [len(each.decisions) for each in found.dialogues] == [4, 0, 9, 2]
    assert run(0.05, (short[1])).dialogues[0].decisions == ()


def test_the_engine_is_left_without_sessions() -> None:
    used = engine()
    stream_paced(used, [tea()], read, PacedSettings(sessions=3), count(0.0, 0.01).__next__)
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
    return PacedDialogue(*tea(), timed).known(speed)


def test_what_is_known_later_counts_later() -> None:
    """An utterance where its first token came, the state where the whole decision did."""
    late = decided(4, 1.7, spoken=0.8, utterance="boil water", state=STARTED, delta=(Transition.of(0, "start"),))
    found = known(late)
    assert found.utterances == {5: "boil water"}
    assert found.events() == [(7, Transition.of(0, "start"))]
    assert [found.by_frame[frame].state for frame in (4, 6, 7, 59)] == [TWO, TWO, STARTED, STARTED]
    assert [frame for frame in found.frames if found.by_frame[frame].p_speak] == [7]
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
    found = run(0.02, tea(), tea("pot"), sessions=2)
    written = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert written["step_ms"]["p50"] == pytest.approx(20)
    assert written["step_ms"]["number"] == len(found.steps)
    assert written["latency_ms"]["number"] == written["frames"] == 120
    assert 0 < written["busy"] <= 1
    assert [len(each["decided"]) for each in written["dialogues"]] == [60, 60]
    empty = PacedRun([], PacedSettings(), [], 0.0).to_dict()
    assert json.loads(json.dumps(empty, allow_nan=False))["step_ms"]["p50"] is None


def test_the_mode_is_off_by_default() -> None:
    assert EvaluationSettings().paced is None
