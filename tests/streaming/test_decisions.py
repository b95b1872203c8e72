"""When a session speaks: thresholds, and what holds it back."""

import json
from typing import get_args

import pytest

from prospect.dialogue.prompt import StrategyName
from prospect.errors import SessionError
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.session.decisions import DecisionGate, decision_policy
from prospect.streaming.settings import GenerationSettings, StreamingSettings
from prospect.streaming.types import Decision, SessionSpec
from tests.factories import CONTEXT, SHORT_TEA, features, tiny_model, tiny_vocabulary


def heard(
    settings: StreamingSettings, probabilities: list[float], asked: tuple[int, ...] = (), moved: tuple[int, ...] = ()
) -> str:
    """One letter a frame: S(peaks), or why not: t(hreshold), c(ooldown), h(ysteresis)."""
    gate, letters = DecisionGate(decision_policy(settings, None, SessionSpec())), ""
    for frame, probability in enumerate(probabilities):
        silence = gate.silence_reason(probability, frame, addressed=frame in asked, updated=frame in moved)
        gate.record(frame, updated=False, spoke=silence is None)
        letters += "S" if silence is None else silence[0]
    return letters


def test_by_default_a_model_that_always_wants_to_speak_speaks_once_and_answers():
    assert heard(StreamingSettings(), [0.9] * 8) == "Schhhhhh"
    assert heard(StreamingSettings(), [0.9] * 8, asked=(1, 5)) == "SSchhSch"
    assert heard(StreamingSettings(), [0.9] * 8, moved=(1, 5)) == "ScSchSch", "something new, after the cool-down"


def test_the_probability_must_come_down_by_a_share_of_the_threshold():
    wavering = [0.6, 0.6, 0.48, 0.6, 0.45, 0.6]
    assert heard(StreamingSettings(), wavering) == "ScthtS"
    assert heard(StreamingSettings(speak_hysteresis=0.0), wavering) == "SctStS"
    assert heard(StreamingSettings(speak_hysteresis=None, cooldown_frames=0), wavering) == "SStStS"
    assert heard(StreamingSettings(speak_hysteresis=None, cooldown_frames=3), [0.9] * 8) == "ScccSccc"


def test_updates_can_be_held_back_alike():
    for hysteresis, expected in ((None, [True, True, False, True]), (0.1, [True, False, False, False])):
        policy = decision_policy(StreamingSettings(update_hysteresis=hysteresis), None, SessionSpec())
        gate, updated = DecisionGate(policy), []
        for frame, probability in enumerate([0.6, 0.6, 0.48, 0.6]):
            updated.append(gate.allows_update(probability))
            gate.record(frame, updated=updated[-1], spoke=False)
        assert updated == expected


@pytest.fixture(scope="module", params=["heads", "token"])
def loaded(request):
    return tiny_model(tiny_vocabulary(), request.param, seed=3)


def run(engine: StreamingEngine, frames: range, name: str = "a", spec: SessionSpec = SHORT_TEA) -> list[Decision]:
    if name not in engine.session_ids:
        engine.open(name, spec)
    for frame in frames:
        engine.push_frame(name, features("tea", frame, frame + 1)[0])
    events = []
    while engine.has_work():
        events += [event for _, event in engine.step() if isinstance(event, Decision)]
    return events


def test_a_session_says_why_it_is_silent(loaded):
    engine = StreamingEngine(loaded, CONTEXT, StreamingSettings(speak_threshold=0.0, update_threshold=1.0))
    engine.open("a", SHORT_TEA)
    first = run(engine, range(4))
    assert [decision.silence for decision in first] == [None, "cooldown", "hysteresis", "hysteresis"]
    engine.push_text("a", "What now?")
    assert [decision.silence for decision in run(engine, range(4, 6))] == [None, "cooldown"]


def test_what_is_drawn_depends_on_the_session_and_goes_on_from_its_log(loaded):
    """Thresholds, restraint and random numbers come from the log, not from the engine that goes on."""
    settings = StreamingSettings(
        speak_threshold=0.0,
        update_threshold=1.0,
        cooldown_frames=2,
        speak_hysteresis=None,
        sampling=GenerationSettings(decoding="sampled", temperature=1.5, top_p=0.95),
    )
    context = CONTEXT.model_copy(update={"max_utterance_tokens": 6})
    first, again, greedy = (
        StreamingEngine(loaded, context, each) for each in (settings, settings, StreamingSettings(speak_threshold=1.0))
    )
    said = [decision.utterance for decision in run(first, range(10))]
    assert [decision.utterance for decision in run(again, range(10))] == said
    other = StreamingEngine(loaded, context, settings)
    assert [decision.utterance for decision in run(other, range(10), "b")] != said
    assert greedy.import_(json.loads(json.dumps(first.export("a")))) == "a"
    expected, continued = run(first, range(10, 20)), run(greedy, range(10, 20))
    assert [(d.frame, d.utterance, d.silence) for d in continued] == [
        (d.frame, d.utterance, d.silence) for d in expected
    ]
    assert sum(d.utterance is not None for d in continued) >= 3
    assert [engine.export("a")["epoch"] for engine in (first, greedy)] == [0, 1]


@pytest.mark.parametrize("strategy", get_args(StrategyName))
def test_a_session_that_lives_long_remembers_no_more_than_it_may(loaded, strategy):
    context = CONTEXT.model_copy(
        update={
            "max_seq_len": 480, "max_utterance_tokens": 4, "max_summary_tokens": 6, "keep_last_tokens": 60,
            "strategy": strategy,
        }
    )  # fmt: skip
    settings = StreamingSettings(
        speak_threshold=0.0, update_threshold=0.0, speak_hysteresis=None, history_events=5, max_waiting_frames=400
    )
    engine = StreamingEngine(loaded, context, settings)
    sizes = []
    engine.open("a", SHORT_TEA)
    for start in range(0, 120, 4):
        engine.push_text("a", "Which?")  # so that every fourth frame has an event, whatever the model says
        run(engine, range(start, start + 4))
        if start + 4 in (60, 120):
            sizes.append(len(json.dumps(engine.export("a"))))
    session = engine._session("a")
    assert len(session.history) == 5
    assert min(session.history) >= 100, "the last ones"
    assert len(session.segment.frames) <= session.cache.length <= 480
    assert max(sizes) < 60_000
    with pytest.raises(SessionError, match="has forgotten its first events; raise streaming"):
        engine.record("a")
