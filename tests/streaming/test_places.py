"""How many sessions fit, what happens to one more, and what the pool holds when all are gone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prospect.errors import OutOfPagesError, SessionError, UnknownSessionError
from prospect.streaming.engine import StreamingEngine, StreamingSettings
from prospect.streaming.outputs import Decision, SessionSpec
from tests.factories import CONTEXT, features, tea_dialogue, tiny_model, tiny_vocabulary

TEA = SessionSpec(goal=tea_dialogue().goal, steps=tea_dialogue().step_names)
SMALL = CONTEXT.model_copy(update={"max_seq_len": 256, "max_utterance_tokens": 4, "max_delta_tokens": 20})
TWO = StreamingSettings(pages=9, page_tokens=64, speak_threshold=0.52, update_threshold=1.0, cooldown_frames=0)
"""9 pages of 64 tokens: two full sessions of 256, and one page over."""


@pytest.fixture(scope="module")
def loaded():
    return tiny_model(tiny_vocabulary())


def push(engine: StreamingEngine, session_id: str, count: int) -> None:
    for _ in range(count):
        engine.push_frame(session_id, features(session_id, 0, 1)[0])


def decided(engine: StreamingEngine) -> dict[str, list[int]]:
    frames: dict[str, list[int]] = {}
    while engine.has_work():
        for session_id, event in engine.step():
            if isinstance(event, Decision):
                frames.setdefault(session_id, []).append(event.frame)
    return frames


def test_no_more_are_opened_than_full_ones_fit(loaded):
    engine = StreamingEngine(loaded, SMALL, TWO)
    assert engine.capacity == 2
    engine.open("a", TEA)
    engine.open("b", TEA)
    with pytest.raises(OutOfPagesError, match="promised to 2 sessions") as caught:
        engine.open("c", TEA)
    assert caught.value.code == "out_of_pages"
    push(engine, "a", 3)
    assert decided(engine) == {"a": [0, 1, 2]}
    engine.close("b")
    engine.open("c", TEA)
    with pytest.raises(OutOfPagesError, match=r"2 pages of 64 tokens hold no session of 256"):
        StreamingEngine(loaded, SMALL, TWO.model_copy(update={"pages": 2}))


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_with_parking_more_are_open_and_each_gets_its_turn(loaded, tmp_path, where):
    parking = TWO.model_copy(update={"parking": where, "parking_folder": tmp_path, "catch_up_frames": 1})
    engine = StreamingEngine(loaded, SMALL, parking)
    for name in "abcde":
        engine.open(name, TEA)
        decided(engine)
    assert (engine.stats().sessions, engine.stats().parked) == (5, 3)
    assert len(list(tmp_path.iterdir())) == (3 if where == "disk" else 0)
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
    assert not list(tmp_path.iterdir())


def test_a_parked_copy_that_is_gone_ends_its_session_alone(loaded, tmp_path):
    engine = StreamingEngine(loaded, SMALL, TWO.model_copy(update={"parking": "disk", "parking_folder": tmp_path}))
    for name in "ab":
        engine.open(name, TEA)
    decided(engine)
    engine.park("a")
    next(tmp_path.iterdir()).unlink()
    push(engine, "a", 1)
    push(engine, "b", 1)
    assert decided(engine) == {"b": [0]}
    assert engine.session_ids == ["b"]


def test_a_session_in_the_middle_of_something_is_not_parked(loaded):
    engine = StreamingEngine(loaded, SMALL, TWO)
    engine.open("a", TEA)
    with pytest.raises(SessionError, match="still being decided"):
        engine.park("a")
    with pytest.raises(UnknownSessionError):
        engine.park("b")


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["open", "push", "say", "patch", "step", "park", "close"]), st.sampled_from("abc")),
    max_size=40,
)


@given(ACTIONS)
@settings(max_examples=25, deadline=None)
def test_whatever_happens_no_page_is_left_when_all_are_gone(loaded, actions):
    engine = StreamingEngine(
        loaded, SMALL, TWO.model_copy(update={"parking": "memory", "page_tokens": 16, "pages": 36})
    )
    for action, name in actions:
        try:
            {
                "open": lambda name: engine.open(name, TEA),
                "push": lambda name: push(engine, name, 9),
                "say": lambda name: engine.push_text(name, "What now?"),
                "patch": lambda name: engine.patch_state(name, {"S1": "completed"}),
                "step": lambda name: engine.step(),
                "park": engine.park,
                "close": engine.close,
            }[action](name)
        except SessionError:
            continue
        tables = [engine._session(name).cache for name in engine.session_ids]
        pages = [page for table in tables for page in table.pages]
        counts = engine.stats().pages
        assert (counts.used, counts.used + counts.cached + counts.free) == (len(set(pages)), 36)
    for name in engine.session_ids:
        engine.close(name)
    assert engine.stats().pages.used == 0
