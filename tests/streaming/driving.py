"""Sessions driven by hand: what the tests of the engine share."""

from prospect.streaming.engine import StreamingEngine
from prospect.streaming.settings import StreamingSettings
from prospect.streaming.types import Decision, SessionSpec
from tests.factories import features, tea_dialogue

SETTINGS = StreamingSettings(cooldown_frames=0, speak_hysteresis=None)
TALKATIVE = SETTINGS.model_copy(update={"speak_threshold": 0.52, "update_threshold": 0.51})
"""Random weights decide anywhere; these thresholds make a random model act on some frames."""
TEA = SessionSpec(goal=tea_dialogue().goal, steps=tea_dialogue().step_names, knowledge=tea_dialogue().knowledge)


def run(engine: StreamingEngine) -> dict[str, list]:
    events: dict[str, list] = {}
    while engine.has_work():
        for session_id, event in engine.step():
            events.setdefault(session_id, []).append(event)
    return events


def decisions(events: list) -> list[Decision]:
    return [event for event in events if isinstance(event, Decision)]


def stream(engine: StreamingEngine, session_id: str, video: str, frames: range, texts: dict[int, str]) -> None:
    for frame in frames:
        if frame in texts:
            engine.push_text(session_id, texts[frame])
        engine.push_frame(session_id, features(video, frame, frame + 1)[0])
