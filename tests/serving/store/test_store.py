"""The session store, in SQLite and PostgreSQL: nothing is lost or written twice, and an older owner writes nothing."""

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prospect.errors import SessionError
from prospect.serving.store import EventRow, Fenced, FrameRow, SessionChange, SessionRow, Store
from tests.serving.store.rows import ROW, event, execute, frame, numbers


def test_a_session_is_found_as_it_was_created(store: Store) -> None:
    assert store.find("a") is None
    assert store.create(ROW) == 1
    assert store.find("a") == replace(ROW, epoch=1)
    other = replace(ROW, session_id="b", mark={"n": [1, None]}, base=None)
    store.create(other)
    assert store.find("b") == replace(other, epoch=1)


def test_the_order_of_steps_is_kept(store: Store) -> None:
    store.create(ROW)
    found = store.find("a")
    assert found is not None
    assert list(found.state) == ["S2", "S1"]


def test_an_open_session_is_not_created_again(store: Store) -> None:
    store.create(ROW)
    with pytest.raises(SessionError, match="a session with this id is open") as caught:
        store.create(replace(ROW, owner="gateway-2"))
    assert (caught.value.code, caught.value.field) == ("session_exists", "session_id")
    assert store.epochs("gateway-1") == {"a": 1}


@pytest.mark.parametrize("erased", [False, True])
def test_a_closed_or_erased_session_is_replaced_under_the_next_epoch(store: Store, erased: bool) -> None:
    """So what its former owner still has to write is not written to the new one."""
    store.create(ROW)
    store.write([SessionChange("a", 1, {"status": "closed"}, [event(1)], [frame(0)])])
    if erased:
        store.erase("a")
    assert store.create(ROW) == 2
    assert store.find("a") == replace(ROW, epoch=2)
    assert (store.events("a"), store.frames("a")) == ([], [])
    assert store.write([SessionChange("a", 1, {"status": "closed"}, [event(2)])]) == {"a"}
    assert store.events("a") == []


def test_a_session_is_claimed_once_under_each_epoch(store: Store) -> None:
    store.create(ROW)
    assert store.claim("a", 1, "gateway-2") == 2
    for session_id, seen in (("a", 1), ("a", 3), ("b", 1)):
        with pytest.raises(Fenced) as caught:
            store.claim(session_id, seen, "gateway-3")
        assert (caught.value.code, caught.value.field) == ("fenced", "session_id")
    assert store.find("a") == replace(ROW, epoch=2, owner="gateway-2")


def test_a_change_writes_columns_events_and_frames(store: Store) -> None:
    store.create(ROW)
    columns: dict[str, Any] = {
        "engine": "engine-2", "status": "closed", "opened": {"goals": []}, "tokens": ("three",), "state": {},
        "position": {"next_seq": 9}, "mark": {"x": 1}, "base": {"y": [b"z"]}, "last_event": 3, "touched": 5.5,
        "owner": "gateway-9",
    }  # fmt: skip
    events = [event(1, '{"text": "caf\u00e9 \U0001f375"}'), EventRow(2, None, "{}"), event(3)]
    acts = FrameRow(2, 7, {"user": [], "delta": "S1->start", "utterance": "Now."}, b"", 9, "{}")
    frames = [frame(0), frame(1, None), acts]
    assert store.write([SessionChange("a", 1, columns, events, frames)]) == set()
    assert store.find("a") == replace(ROW, epoch=1, **columns)
    assert store.events("a") == events
    assert store.events("a", after=2) == events[2:]
    assert store.frames("a") == frames
    store.write([SessionChange("a", 1, {"base": None, "mark": None}, [], [frame(3)], frames_from=2)])
    assert [each.frame for each in store.frames("a")] == [2, 3]
    found = store.find("a")
    assert found is not None
    assert (found.base, found.mark, found.last_event) == (None, None, 3)


def test_a_repeated_write_changes_nothing(store: Store) -> None:
    """The answer to a commit may be lost, and then the same changes are written again."""
    store.create(ROW)
    first = SessionChange("a", 1, {"last_event": 1}, [event(1, "1")], [frame(0), frame(1)], frames_from=1)
    second = SessionChange("a", 1, {"last_event": 2}, [event(2, "2")], [frame(2)])
    for changes in ([first, second], [first, second], [second]):
        assert store.write(changes) == set()
        assert [each.payload for each in store.events("a")] == ["1", "2"]
        assert [each.frame for each in store.frames("a")] == [1, 2]
    store.write([SessionChange("a", 1, {}, [event(2, "another")], [replace(frame(2), seq=99)])])
    assert store.events("a")[1].payload == "2", "it may have been sent"
    assert store.frames("a")[1].seq == 99, "an utterance comes after its frame"


def test_an_older_epoch_writes_nothing_and_keeps_nobody_else_from_writing(store: Store) -> None:
    for session_id in "abc":
        store.create(replace(ROW, session_id=session_id))
    store.claim("b", 1, "gateway-2")
    changes = [
        SessionChange(session_id, 1, {"last_event": 7}, [event(7)], [frame(0)], frames_from=0) for session_id in "cbax"
    ]
    assert store.write(changes) == {"b", "x"}
    assert store.find("b") == replace(ROW, session_id="b", epoch=2, owner="gateway-2")
    assert (store.events("b"), store.frames("b"), store.events("x")) == ([], [], [])
    assert [numbers(store, session_id) for session_id in "ac"] == [[7], [7]]


def test_an_owner_has_its_open_sessions(store: Store) -> None:
    for session_id in "abc":
        store.create(replace(ROW, session_id=session_id))
    store.claim("b", 1, "gateway-2")
    store.write([SessionChange("c", 1, {"status": "closed"})])
    assert store.epochs("gateway-1") == {"a": 1}
    assert store.epochs("gateway-2") == {"b": 2}
    assert store.epochs("gateway-3") == {}


def test_an_erased_session_leaves_nothing_that_was_said(store: Store) -> None:
    for session_id in "ab":
        store.create(replace(ROW, session_id=session_id))
        store.write([SessionChange(session_id, 1, {}, [event(1, '"secret"')], [frame(0)])])
    assert store.erase("a")
    assert not store.erase("a")
    assert not store.erase("x")
    assert store.find("a") is None
    assert (store.events("a"), store.frames("a"), store.epochs("gateway-1")) == ([], [], {"b": 1})
    assert (numbers(store, "b"), len(store.frames("b"))) == ([1], 1)
    assert store.write([SessionChange("a", 1, {"status": "open"}, [event(2)])]) == {"a"}
    with pytest.raises(Fenced):
        store.claim("a", 1, "gateway-2")
    [left] = execute(store, "SELECT * FROM prospect_sessions WHERE session_id = 'a'")
    said = {name: value for name, value in left._asdict().items() if value not in ("", "{}", "[]", 0, None)}
    assert said == {"session_id": "a", "epoch": 1, "status": "erased", "touched": said["touched"]}


def test_old_sessions_expire(store: Store) -> None:
    for session_id, status, touched in (("a", "open", 10), ("b", "open", 30), ("c", "closed", 10), ("d", "closed", 30)):
        store.create(replace(ROW, session_id=session_id))
        store.write([SessionChange(session_id, 1, {"status": status, "touched": touched}, [event(1)], [frame(0)])])
    assert store.expire(closed_before=20, touched_before=5) == 1
    assert store.expire(closed_before=20, touched_before=20) == 1
    assert store.expire(closed_before=20, touched_before=20) == 0
    assert [store.find(session_id) is None for session_id in "abcd"] == [True, False, True, False]
    assert [numbers(store, session_id) for session_id in "abcd"] == [[], [1], [], [1]]
    assert store.write([SessionChange("a", 1, {}, [event(2)])]) == {"a"}, "its owner may still be there"


def test_what_fences_an_erased_session_goes_after_a_day(store: Store) -> None:
    store.create(ROW)
    store.erase("a")
    store.expire(0, 0)
    assert len(execute(store, "SELECT * FROM prospect_sessions")) == 1
    execute(store, "UPDATE prospect_sessions SET touched = touched - 90000")
    assert store.expire(0, 0) == 0
    assert execute(store, "SELECT * FROM prospect_sessions") == []
    assert store.create(ROW) == 1


IDS = ("a", "b")
SMALL = st.integers(0, 4)
CHANGES = st.tuples(
    st.sampled_from(IDS),
    st.sampled_from([0, 0, 0, 1, -1]),
    st.fixed_dictionaries(
        {},
        optional={
            "status": st.sampled_from(["open", "closed"]),
            "state": st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3),
            "base": st.none() | st.dictionaries(st.text(max_size=3), st.binary(max_size=5), max_size=2),
            "last_event": st.integers(0, 2**62),
            "touched": st.floats(0, 2e9),
        },
    ),
    st.lists(
        st.builds(EventRow, st.integers(1, 4), st.none() | SMALL, st.sampled_from(["{}", '{"x": 1}'])), max_size=3
    ),
    st.lists(st.builds(FrameRow, SMALL, SMALL, st.just({"user": []}), st.none() | st.binary(max_size=3)), max_size=3),
    st.none() | SMALL,
)
ACTS = st.one_of(
    st.tuples(st.just("write"), st.lists(CHANGES, max_size=3)),
    st.tuples(st.just("claim"), st.tuples(st.sampled_from(IDS), st.sampled_from([0, 0, 1]))),
    st.tuples(st.sampled_from(["create", "erase"]), st.sampled_from(IDS)),
)
EXAMPLES = count()


class Model:
    """The store as dictionaries by session id."""

    def __init__(self) -> None:
        self.rows: dict[str, SessionRow] = {}
        self.events: dict[str, dict[int, EventRow]] = {}
        self.frames: dict[str, dict[int, FrameRow]] = {}

    def epoch(self, session_id: str) -> int:
        return self.rows[session_id].epoch if session_id in self.rows else 1

    def is_there(self, session_id: str) -> bool:
        return session_id in self.rows and self.rows[session_id].status != "erased"

    def create(self, row: SessionRow) -> int | None:
        before = self.rows.get(row.session_id)
        if before is not None and before.status == "open":
            return None
        self.rows[row.session_id] = replace(row, epoch=1 if before is None else before.epoch + 1)
        self.events[row.session_id], self.frames[row.session_id] = {}, {}
        return self.epoch(row.session_id)

    def claim(self, session_id: str, seen: int) -> int | None:
        if not self.is_there(session_id) or self.epoch(session_id) != seen:
            return None
        self.rows[session_id] = replace(self.rows[session_id], epoch=seen + 1, owner="new")
        return seen + 1

    def erase(self, session_id: str) -> bool:
        if not self.is_there(session_id):
            return False
        self.rows[session_id] = replace(self.rows[session_id], status="erased")
        self.events[session_id], self.frames[session_id] = {}, {}
        return True

    def write(self, change: SessionChange) -> bool:
        """False where it is fenced."""
        key = change.session_id
        if not self.is_there(key) or self.epoch(key) != change.epoch:
            return False
        self.rows[key] = replace(self.rows[key], **change.columns)
        for row in change.events:
            self.events[key].setdefault(row.number, row)
        self.frames[key].update({row.frame: row for row in change.frames})
        return True

    def fold(self, change: SessionChange) -> None:
        if change.frames_from is not None:
            kept = self.frames[change.session_id]
            self.frames[change.session_id] = {n: row for n, row in kept.items() if n >= change.frames_from}

    def write_all(self, changes: list[SessionChange]) -> set[str]:
        written = [change for change in changes if self.write(change)]
        for change in written:
            self.fold(change)
        return {change.session_id for change in changes if change not in written}


def answer(call: Callable[..., Any], *arguments: Any) -> Any:
    """None where the store refuses."""
    try:
        return call(*arguments)
    except SessionError:
        return None


@settings(max_examples=40)
@given(acts=st.lists(ACTS, min_size=1, max_size=12))
def test_any_sequence_of_writes_leaves_what_a_dictionary_would(lasting_store: Store, acts: list[Any]) -> None:
    store, model, example = lasting_store, Model(), next(EXAMPLES)
    ids = {name: f"{name}{example}" for name in IDS}
    for session_id in ids.values():
        assert store.create(replace(ROW, session_id=session_id)) == model.create(replace(ROW, session_id=session_id))
    for act, what in acts:
        if act == "write":
            changes = [SessionChange(ids[name], model.epoch(ids[name]) - lag, *rest) for name, lag, *rest in what]
            assert store.write(changes) == model.write_all(changes)
        elif act == "claim":
            session_id, seen = ids[what[0]], model.epoch(ids[what[0]]) - what[1]
            claimed = answer(store.claim, session_id, seen, "new")
            assert claimed == model.claim(session_id, seen)
        elif act == "create":
            row = replace(ROW, session_id=ids[what])
            assert answer(store.create, row) == model.create(row)
        else:
            assert store.erase(ids[what]) == model.erase(ids[what])
    for session_id in ids.values():
        assert store.find(session_id) == (model.rows[session_id] if model.is_there(session_id) else None)
        assert store.events(session_id) == [row for _, row in sorted(model.events[session_id].items())]
        assert store.frames(session_id) == [row for _, row in sorted(model.frames[session_id].items())]
