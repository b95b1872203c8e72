"""A session's log, taken at any moment: what waits is in it, and what is not fed yet has none."""

import dataclasses
import json

import pytest

from prospect.errors import SessionError
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.types import Refreshed
from tests.factories import CONTEXT, SETTINGS, TALKATIVE, TEA, decisions, run, stream


def test_a_log_of_an_earlier_version_has_no_frames_that_wait(random_model):
    engine = StreamingEngine(random_model, CONTEXT, SETTINGS)
    engine.open("a", TEA)
    run(engine)
    stream(engine, "a", "tea", range(3), {1: "What now?"})
    log = engine.export("a")
    assert [list(texts) for texts in log["waiting"]["texts"]] == [[], ["What now?"], []]
    log.pop("waiting")
    other = StreamingEngine(random_model, CONTEXT, SETTINGS)
    other.import_(log)
    assert other.waiting("a") == 0


def test_a_session_whose_first_context_is_not_fed_has_no_log_yet(random_model):
    engine = StreamingEngine(random_model, CONTEXT, SETTINGS)
    engine.open("a", TEA)
    with pytest.raises(SessionError, match="its first context is still being fed"):
        engine.export("a")


def test_a_patch_while_a_frame_is_in_work_is_in_the_log(random_model):
    engine = StreamingEngine(random_model, CONTEXT, TALKATIVE)
    engine.open("a", dataclasses.replace(TEA, speak_threshold=0.0, update_threshold=1.0))
    run(engine)
    stream(engine, "a", "tea", range(2))
    engine.step()  # the first frame's utterance is being written
    engine.patch_state("a", {"S2": "completed"})
    log = engine.export("a")
    assert len(log["waiting"]["texts"]) == 2
    assert (log["state"][1], log["stale"]) == ("completed", True)
    other = StreamingEngine(random_model, CONTEXT, TALKATIVE)
    other.import_(json.loads(json.dumps(log)))
    events = run(other)["a"]
    assert isinstance(events[0], Refreshed)
    assert all(decision.state.steps[1] == 2 for decision in decisions(events))
