"""A session's journal: whoever reads or resumes gets each message once and in order, or is told what is gone."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prospect.protocol.messages import FrameDecision, ResponseDone, ServerMessage, SessionClosed, SessionUpdate
from prospect.serving.journal import Journal, Reader

CLOSED = SessionClosed(session_id="a", reason="client", frames=0)


def decision(seq: int) -> FrameDecision:
    return FrameDecision(seq=seq, frame=seq, p_speak=0, p_update=0)


def said(seq: int) -> ResponseDone:
    return ResponseDone(seq=seq, frame=seq, text="Now.")


def resumed(last_event: int | None = None, decided: int | None = None) -> SessionUpdate:
    return SessionUpdate(resume="a:b", last_event=last_event, decided=decided)


def read(reader: Reader, count: int = 100) -> list[ServerMessage]:
    """The next messages that are there, at most `count`."""
    found: list[ServerMessage] = []
    while len(found) < count and (message := reader.take()) is not None:
        found.append(message)
    return found


def shown(messages: Sequence[ServerMessage]) -> list[object]:
    """Decisions by seq, durable messages by their number as text, others by type."""
    return [
        m.seq if isinstance(m, FrameDecision) else str(m.event) if getattr(m, "event", None) else m.type
        for m in messages
    ]


def test_durable_messages_are_numbered_and_decisions_are_not():
    journal = Journal(10, 10)
    reader = journal.read()
    for seq in range(2):
        journal.add(decision(seq))
        journal.add(said(seq))
    assert shown(read(reader)) == [0, "1", 1, "2"]
    assert journal.last_event == 2


def test_what_was_not_read_moves_over_and_what_a_client_lacks_is_sent_again():
    journal = Journal(10, 10)
    first = journal.read()
    for seq in range(3):
        journal.add(decision(seq))
        journal.add(said(seq))
    assert shown(read(first, 2)) == [0, "1"]
    assert shown(read(journal.read(resumed()))) == ["1", 1, "2", 2, "3"], "it may not have arrived"
    assert shown(read(journal.read(resumed(last_event=1, decided=1)))) == ["2", 2, "3"]
    assert shown(read(journal.read(resumed(last_event=3, decided=2)))) == []
    assert shown(read(first)) == []


def test_what_is_kept_no_more_is_named():
    journal = Journal(max_events=2, max_decisions=2)
    for seq in range(4):
        journal.add(decision(seq))
        journal.add(said(seq))
    lost, moved, *rest = read(journal.read(resumed(last_event=1, decided=0)), 10)
    assert lost.message == "last_event: events 2 to 2 are kept no more"
    assert moved.decided_to == 1
    assert shown(rest) == [2, "3", 3, "4"]
    journal.acknowledge(3)
    assert shown(read(journal.read(resumed(last_event=3, decided=3)))) == ["4"]
    assert shown(read(journal.read(resumed(last_event=4, decided=3)))) == []


@pytest.mark.parametrize("say", [decision, said])
def test_a_reader_whose_unread_messages_must_be_forgotten_is_cut_off_and_told_when_it_resumes(say):
    journal = Journal(max_events=3, max_decisions=3)
    reader = journal.read()
    journal.add(say(0))
    assert len(read(reader)) == 1
    for seq in range(1, 5):
        journal.add(say(seq))
    [last] = read(reader)
    assert last.code == "slow_client"
    told, *rest = read(journal.read(resumed()))
    assert told.type in ("session.moved", "error")
    assert len(rest) == 3


def test_a_long_history_cuts_nobody_off_who_resumes():
    journal = Journal(max_events=3, max_decisions=3)
    for seq in range(50):
        journal.add(decision(seq))
        journal.add(said(seq))
    reader = journal.read(resumed(last_event=49, decided=48))
    journal.add(decision(50))
    assert shown(read(reader)) == [49, "50", 50]


def test_each_part_of_a_cursor_that_is_left_out_is_what_was_read():
    journal = Journal(10, 10)
    reader = journal.read()
    for seq in range(3):
        journal.add(decision(seq))
        journal.add(said(seq))
    read(reader, 4)
    reader.take()  # asked for the fifth, so that four have been passed on
    assert shown(read(journal.read(resumed(decided=-1)))) == [0, 1, 2, "3"]
    reader = journal.read(resumed(last_event=0))
    assert shown(read(reader)) == ["1", "2", "3"]


def test_who_comes_after_the_last_message_hears_it_and_no_more():
    async def story() -> None:
        journal = Journal(10, 10)
        journal.add(said(0))
        journal.add(CLOSED)
        journal.finish()
        assert [m.type async for m in journal.read(resumed(last_event=1))] == ["session.closed"]

    asyncio.run(story())


def test_the_last_message_ends_the_reader_after_it():
    async def story() -> None:
        journal = Journal(10, 10)
        reader = journal.read()
        journal.add(said(0))
        journal.add(CLOSED)
        journal.finish()
        assert [m.type async for m in reader] == ["response.done", "session.closed"]

    asyncio.run(story())


@given(st.lists(st.tuples(st.sampled_from(["decide", "say", "read", "break", "ack"]), st.integers(0, 5)), max_size=40))
def test_a_client_that_breaks_off_at_any_moment_has_everything_once_and_in_order(acts: list[tuple[str, int]]):
    """Whatever it has read is what it has; whatever was on its way is lost with the connection."""

    journal, frames, has = Journal(100, 100), 0, list[object]()
    reader, everything = journal.read(), list[object]()

    def cursor() -> SessionUpdate:
        events = [int(each) for each in has if isinstance(each, str)]
        return resumed(max(events, default=0), max((each for each in has if isinstance(each, int)), default=-1))

    for act, number in acts:
        match act:
            case "decide":
                journal.add(decision(frames))
                everything.append(frames)
                frames += 1
            case "say":
                journal.add(said(frames))
                everything.append(str(journal.last_event))
            case "read":
                has += shown(read(reader, number))
            case "ack":
                journal.acknowledge(cursor().last_event or 0)
            case "break":
                read(reader, number)  # never arrives
                reader = journal.read(cursor())
    reader = journal.read(cursor())
    has += shown(read(reader))
    assert has == everything
