"""Mistakes of callers and damaged logs are named, and harm neither the engine nor other sessions."""

import numpy as np
import pytest

from prospect.errors import FingerprintError, ProspectError, SessionError, UnknownSessionError, UntrainedHeadError
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.kv_cache.parking import pack, unpack
from prospect.streaming.settings import StreamingSettings
from prospect.streaming.types import Failed, SessionSpec
from tests.factories import CONTEXT, DIM, SETTINGS, TALKATIVE, TEA, decisions, run, stream, tiny_model


def test_mistakes_are_named_and_harm_nobody(random_model):
    engine = StreamingEngine(random_model, CONTEXT, StreamingSettings(max_sessions=2, max_waiting_frames=2))
    engine.open("a", TEA)
    with pytest.raises(UnknownSessionError, match="'nobody' is not open"):
        engine.push_frame("nobody", np.zeros((1, DIM), np.float16))
    with pytest.raises(SessionError, match=rf"has shape \[1, 3\], expected \[1, {DIM}\]") as caught:
        engine.push_frame("a", np.zeros((1, 3), np.float16))
    assert caught.value.code == "wrong_shape"
    with pytest.raises(SessionError, match="not finite"):
        engine.push_frame("a", np.full((1, DIM), np.nan, np.float16))
    with pytest.raises(FingerprintError, match="encoded with other, the model expects tests"):
        engine.push_frame("a", np.zeros((1, DIM), np.float16), "other")
    declared = StreamingEngine(engine.loaded, CONTEXT, engine.settings, ["other"])
    declared.open("a", TEA)
    assert declared.push_frame("a", np.zeros((1, DIM), np.float16), "other") == 0
    with pytest.raises(SessionError, match="open already"):
        engine.open("a", TEA)
    with pytest.raises(SessionError, match="no step 'S9'"):
        engine.patch_state("a", {"S9": "completed"})
    with pytest.raises(SessionError, match="'paused' must be one of"):
        engine.patch_state("a", {"S1": "paused"})
    with pytest.raises(SessionError, match="has room for"):
        engine.push_text("a", "word " * 5000)
    with pytest.raises(ProspectError, match="the limit is 256; shorten them"):
        engine.open("b", SessionSpec(goal="tea " * 9000))
    engine.open("b", SessionSpec(goal="Wash up"))
    with pytest.raises(SessionError, match="all 2 sessions are taken"):
        engine.open("c", SessionSpec())
    stream(engine, "a", "a", range(2))
    with pytest.raises(SessionError, match="2 frames are waiting"):
        stream(engine, "a", "a", range(1))
    assert [d.frame for d in decisions(run(engine)["a"])] == [0, 1]
    engine.close("a")
    with pytest.raises(UnknownSessionError):
        engine.state("a")


def test_an_untrained_model_is_refused_where_it_would_be_used(vocabulary):
    engine = StreamingEngine(tiny_model(vocabulary, trained=False), CONTEXT, SETTINGS)
    with pytest.raises(UntrainedHeadError, match="dst_update had no training step"):
        engine.open("a", TEA)


def test_a_state_head_that_was_never_trained_is_not_read(vocabulary):
    loaded = tiny_model(vocabulary)
    loaded.model.config.trained_steps = {"speaking": 1, "dst_update": 1, "dst_state": 0}
    engine = StreamingEngine(loaded, CONTEXT, TALKATIVE)
    engine.open("a", TEA)
    stream(engine, "a", "a", range(6))
    assert [d.readout for d in decisions(run(engine)["a"])] == [None] * 6
    with pytest.raises(UntrainedHeadError, match="dst_state had no training step"):
        StreamingEngine(loaded, CONTEXT, StreamingSettings(dst_decoder="readout")).open("a", TEA)
    reading = StreamingEngine(tiny_model(vocabulary), CONTEXT, StreamingSettings(dst_decoder="readout"))
    reading.open("b", TEA)
    run(reading)
    with pytest.raises(UntrainedHeadError, match="dst_state had no training step"):
        engine.import_(reading.export("b"))


def test_a_defect_in_one_session_ends_that_one_alone(random_model):
    engine = StreamingEngine(random_model, CONTEXT, SETTINGS)
    for name in ("a", "b"):
        engine.open(name, TEA)
        stream(engine, name, name, range(2))
    while engine.segment("a") is None:
        engine.step()
    engine._session("a")._window.segment = None
    events = run(engine)
    assert isinstance(events["a"][-1], Failed)
    assert engine.session_ids == ["b"]
    assert [d.frame for d in decisions(events["b"])] == [0, 1]


def test_a_log_of_another_model_or_a_damaged_one_is_refused(random_model, vocabulary):
    engine = StreamingEngine(random_model, CONTEXT, SETTINGS)
    engine.open("a", TEA)
    stream(engine, "a", "a", range(3))
    run(engine)
    log, older = engine.export("a"), engine.export("a", parked=True)
    stream(engine, "a", "a", range(3, 4))
    run(engine)
    newer = engine.export("a", parked=True)
    other = StreamingEngine(tiny_model(vocabulary, layers=3), CONTEXT, SETTINGS)
    with pytest.raises(SessionError, match="recorded with another model"):
        other.import_(log)
    engine.close("a")
    with pytest.raises(SessionError, match="'segment' is missing"):
        engine.import_({name: value for name, value in log.items() if name != "segment"})
    shorter = {**log, "segment": {**log["segment"], "events": log["segment"]["events"][:-1]}}
    with pytest.raises(SessionError, match="differ in number"):
        engine.import_(shorter)
    with pytest.raises(SessionError, match=r"its cache holds \d+ tokens, its segment has \d+"):
        engine.import_({**newer, "cache": older["cache"]})
    assert engine.session_ids == []
    assert engine.stats().pages.used == 0


def test_keys_and_values_that_do_not_fit_are_refused_and_harm_nobody(random_model, vocabulary):
    engine = StreamingEngine(random_model, CONTEXT, SETTINGS)
    for name in ("a", "b"):
        engine.open(name, TEA)
        stream(engine, name, name, range(3))
    run(engine)
    log = engine.export("a", parked=True)
    engine.close("a")
    held = unpack(log["cache"])
    damaged = {
        "parked session: values have shape": {**held, "values": held["values"][:, :1]},
        "its step vectors have shape": {**held, "step_vectors": held["step_vectors"][:, :-1]},
    }
    for message, tensors in damaged.items():
        with pytest.raises(SessionError, match=message):
            engine.import_({**log, "cache": pack(tensors)})
    retrained = StreamingEngine(tiny_model(vocabulary, seed=1), CONTEXT, SETTINGS)
    with pytest.raises(SessionError, match="computed with other weights; leave it out"):
        retrained.import_(log)
    retrained.import_({name: value for name, value in log.items() if name != "cache"})
    stream(engine, "b", "b", range(3, 4))
    assert [d.frame for d in decisions(run(engine)["b"])] == [3]
    engine.close("b")
    assert engine.stats().pages.used == 0
