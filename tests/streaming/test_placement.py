"""How many sessions fit, what happens to one more, and what the pool holds when all are gone."""

import gc
import shutil
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prospect.errors import ConfigError, OutOfPagesError, SessionError, UnknownSessionError
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.kv_cache.parking import ParkingLot
from prospect.streaming.kv_cache.placement import CachePlacement
from prospect.streaming.settings import StreamingSettings
from prospect.streaming.types import Decision, SessionSpec
from tests.factories import CONTEXT, SHORT_TEA, decisions, run, stream, tiny_model, tiny_vocabulary

SMALL = CONTEXT.model_copy(update={"max_seq_len": 256, "max_utterance_tokens": 4, "max_delta_tokens": 20})
TWO = StreamingSettings(pages=9, page_tokens=64, speak_threshold=0.52, update_threshold=1.0, cooldown_frames=0)
"""9 pages of 64 tokens: two full sessions of 256, and one page over."""


@pytest.fixture(scope="module")
def loaded():
    return tiny_model(tiny_vocabulary())


def push(engine: StreamingEngine, session_id: str, count: int) -> None:
    stream(engine, session_id, session_id, [0] * count)


def decided(engine: StreamingEngine) -> dict[str, list[int]]:
    frames = {
        session_id: [decision.frame for decision in decisions(events)] for session_id, events in run(engine).items()
    }
    return {session_id: decided for session_id, decided in frames.items() if decided}


def test_no_more_are_opened_than_full_ones_fit(loaded):
    engine = StreamingEngine(loaded, SMALL, TWO)
    assert engine.capacity == 2
    engine.open("a", SHORT_TEA)
    engine.open("b", SHORT_TEA)
    with pytest.raises(OutOfPagesError, match="promised to 2 sessions") as caught:
        engine.open("c", SHORT_TEA)
    assert caught.value.code == "out_of_pages"
    push(engine, "a", 3)
    assert decided(engine) == {"a": [0, 1, 2]}
    engine.close("b")
    engine.open("c", SHORT_TEA)
    with pytest.raises(OutOfPagesError, match=r"2 pages of 64 tokens cannot hold a session of 256"):
        StreamingEngine(loaded, SMALL, TWO.model_copy(update={"pages": 2}))


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_with_parking_more_are_open_and_each_gets_its_turn(loaded, tmp_path, where):
    parking = TWO.model_copy(update={"parking": where, "parking_folder": tmp_path, "catch_up_frames": 1})
    engine = StreamingEngine(loaded, SMALL, parking)
    for name in "abcde":
        engine.open(name, SHORT_TEA)
        decided(engine)
    assert (engine.stats().sessions, engine.stats().parked) == (5, 3)
    assert len(list(tmp_path.rglob("*.safetensors"))) == (3 if where == "disk" else 0)
    for name in "abcde":
        push(engine, name, 6)
    first: list[str] = []
    while engine.has_work():
        first += [sid for sid, event in engine.step() if isinstance(event, Decision)]
    assert sorted(first) == sorted("abcde" * 6)
    assert set(first[:15]) == set("abcde"), "somebody waits until the others are done"
    for name in "abcde":
        engine.close(name)
    assert engine.stats().pages.used == 0
    assert not list(tmp_path.rglob("*.safetensors"))


def test_two_engines_park_in_one_folder_and_leave_nothing_there(loaded, tmp_path):
    settings = TWO.model_copy(update={"parking": "disk", "parking_folder": tmp_path})
    first, second = (StreamingEngine(loaded, SMALL, settings) for _ in range(2))
    first.open("a", SHORT_TEA)
    decided(first)
    first.park("a")
    second.import_(first.export("a", parked=True))
    second.park("a")
    first.close("a")
    push(second, "a", 1)
    assert decided(second) == {"a": [0]}
    second.park("a")
    del first, second
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_engine_left_goes_when_the_next_one_is_made(tmp_path):
    script = f"""
import sys, torch
from pathlib import Path
from prospect.streaming.kv_cache.parking import ParkingLot
lot = ParkingLot(Path({str(tmp_path)!r}))
lot.store("a", {{"keys": torch.zeros(3)}})
print("left", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as engine:
        assert engine.stdout is not None
        assert engine.stdout.readline() == b"left\n"
        ParkingLot(tmp_path)
        assert len(list(tmp_path.rglob("*.safetensors"))) == 1
        engine.kill()
    ParkingLot(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_parking_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        ConfigError, match=r"`streaming.parking_folder` \(.*/file/parked\) must be a folder that can be written to"
    ):
        ParkingLot(tmp_path / "file" / "parked")


def test_a_place_changes_hands_at_most_once_a_step(loaded, monkeypatch):
    """Everybody waits; those who come in do not push others out who then push out the next ones."""
    engine = StreamingEngine(loaded, SMALL, TWO.model_copy(update={"parking": "memory", "catch_up_frames": 1}))
    for name in "abcde":
        engine.open(name, SHORT_TEA)
        decided(engine)
        push(engine, name, 4)
    moves: list[str] = []
    park = CachePlacement.park
    monkeypatch.setattr(CachePlacement, "park", lambda self, name: (moves.append(name), park(self, name)))
    while engine.has_work():
        moves.clear()
        engine.step()
        assert len(moves) <= engine.capacity


def test_a_full_disk_ends_no_session(loaded, tmp_path, caplog):
    engine = StreamingEngine(loaded, SMALL, TWO.model_copy(update={"parking": "disk", "parking_folder": tmp_path}))
    for name in "ab":
        engine.open(name, SHORT_TEA)
    decided(engine)
    (folder,) = tmp_path.iterdir()
    shutil.rmtree(folder)  # what cannot be written where a disk is full cannot be written here either
    with pytest.raises(SessionError, match="session a: cannot be parked in"):
        engine.park("a")
    with pytest.raises(OutOfPagesError, match="promised to 2 sessions"):
        engine.open("c", SHORT_TEA)
    assert "cannot be parked" in caplog.text
    push(engine, "a", 1)
    push(engine, "b", 1)
    assert decided(engine) == {"a": [0], "b": [0]}


def test_a_parked_copy_that_is_gone_ends_its_session_alone(loaded, tmp_path):
    engine = StreamingEngine(loaded, SMALL, TWO.model_copy(update={"parking": "disk", "parking_folder": tmp_path}))
    for name in "ab":
        engine.open(name, SHORT_TEA)
    decided(engine)
    engine.park("a")
    next(tmp_path.rglob("*.safetensors")).unlink()
    push(engine, "a", 1)
    push(engine, "b", 1)
    assert decided(engine) == {"b": [0]}
    assert engine.session_ids == ["b"]


def test_a_session_in_the_middle_of_something_is_not_parked(loaded):
    engine = StreamingEngine(loaded, SMALL, TWO)
    engine.open("a", SHORT_TEA)
    with pytest.raises(SessionError, match="still being decided"):
        engine.park("a")
    with pytest.raises(UnknownSessionError):
        engine.park("b")


def move(engine: StreamingEngine, session_id: str, parked: bool) -> None:
    """Away and back."""
    log = engine.export(session_id, parked)
    engine.close(session_id)
    engine.import_(log)


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["open", "push", "say", "patch", "step", "park", "move", "move parked", "close"]),
        st.sampled_from("abc"),
    ),
    max_size=40,
)


@given(ACTIONS)
@settings(max_examples=25, deadline=None)
def test_whatever_happens_no_page_is_left_when_all_are_gone(loaded, actions):
    engine = StreamingEngine(
        loaded, SMALL, TWO.model_copy(update={"parking": "memory", "page_tokens": 16, "pages": 42})
    )
    for action, name in actions:
        try:
            {
                "open": lambda name: engine.open(name, SHORT_TEA),
                "push": lambda name: push(engine, name, 9),
                "say": lambda name: engine.push_text(name, "What now?"),
                "patch": lambda name: engine.patch_state(name, {"S1": "completed"}),
                "step": lambda name: engine.step(),
                "park": engine.park,
                "move": lambda name: move(engine, name, parked=False),
                "move parked": lambda name: move(engine, name, parked=True),
                "close": engine.close,
            }[action](name)
        except SessionError:
            continue
        tables = [engine._session(name).cache for name in engine.session_ids]
        pages = [page for table in tables for page in table.pages]
        counts = engine.stats().pages
        assert (counts.used, counts.used + counts.cached + counts.free) == (len(set(pages)), 42)
    for name in engine.session_ids:
        engine.close(name)
    assert engine.stats().pages.used == 0


def test_however_many_contexts_come_a_frame_waits_for_one_step_at_most(loaded):
    """Twelve sessions open at once beside one that watches; a chunk is half a step."""
    many = TWO.model_copy(update={"pages": 52, "step_tokens": 32, "chunk_tokens": 16, "share_prefixes": False})
    engine = StreamingEngine(loaded, SMALL, many)
    engine.open("watching", SessionSpec(goal="Wash up", speak_threshold=1.0))
    decided(engine)
    for name in "abcdefghijkl":
        engine.open(name, SHORT_TEA)
    waits = []
    while engine.stats().tokens < 12 * 60:
        push(engine, "watching", 1)
        waits.append(next(step for step in range(1, 9) if any(sid == "watching" for sid, _ in engine.step())))
    assert len(waits) > 10
    assert max(waits) <= 2
