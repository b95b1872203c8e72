"""What `prospect test` finds in answers that are wrong."""

from collections.abc import Callable

import pytest

from prospect.probe.checks import check
from prospect.probe.stream import Heard, Streamed
from prospect.protocol.messages import (
    ErrorMessage,
    FrameDecision,
    FrameDropped,
    ResponseDone,
    ServerMessage,
    SessionMoved,
    StateUpdated,
)

NUM_FRAMES = 4


def decision(seq: int, frame: int | None = None, p_speak: float = 0.5) -> FrameDecision:
    return FrameDecision(seq=seq, frame=seq if frame is None else frame, p_speak=p_speak, p_update=0.5)


def updated(event: int, s1: str, s2: str, delta: str) -> StateUpdated:
    return StateUpdated(event=event, state={"S1": s1, "S2": s2}, delta=delta, seq=0, frame=0)


REFUSED = ErrorMessage(code="unknown_step", message="state.S999: unknown step", field="state.S999", event=4)
FIRST: list[ServerMessage] = [
    decision(0),
    updated(1, "in_progress", "not_started", "S1->start"),
    decision(1),
]
SECOND: list[ServerMessage] = [
    *FIRST,
    ResponseDone(event=2, seq=1, frame=1, text="Good."),
    FrameDropped(event=3, seq=2, reason="late"),
    decision(3, 2),
    REFUSED,
]


def failed(first: list[ServerMessage], second: list[ServerMessage], forgotten: bool = True) -> dict[str, str]:
    streamed = Streamed(NUM_FRAMES, Heard(first), Heard(second), forgotten=forgotten)
    return {each.name: each.found for each in check(streamed, steps=2) if not each.ok}


def test_a_good_stream_passes():
    assert failed(FIRST, SECOND) == {}


def test_decisions_that_are_kept_no_more_are_declared():
    assert failed(FIRST, [SessionMoved(decided_to=1), *(m for m in SECOND if m not in (FIRST[0], FIRST[2]))]) == {}


def without(index: int) -> Callable[[list[ServerMessage]], list[ServerMessage]]:
    return lambda messages: [m for number, m in enumerate(messages) if number != index]


@pytest.mark.parametrize(
    ("change", "name", "says"),
    [
        (without(5), "every frame is answered once", "without an answer: 3"),
        (lambda heard: [*heard, heard[4]], "every frame is answered once", "answered twice: 2"),
        (lambda heard: [*heard, decision(9)], "every frame is answered once", "never sent: 9"),
        (lambda heard: [heard[5], *without(5)(heard)], "decisions come in order", "came after frame 2 (seq 3)"),
        (without(3), "events are numbered without holes", "heard 1, 3, 4"),
        (without(0), "a new connection hears the same", "1 messages did not come again, 0 were others"),
        (
            lambda heard: [decision(0, p_speak=0.9), *heard[1:]],
            "a new connection hears the same",
            "0 messages did not come again, 1 were others",
        ),
        (without(6), "a wrong message gets an error", "no error came"),
        (
            lambda heard: [*heard, ErrorMessage(event=5, code="internal", message="a defect")],
            "a wrong message gets an error",
            "internal: a defect",
        ),
        (
            lambda heard: [*heard, updated(5, "not_started", "not_started", "S1->start")],
            "states are legal",
            "event 5: S1 goes back from in_progress",
        ),
        (
            lambda heard: [*heard, updated(5, "completed", "completed", "S1->complete")],
            "states are legal",
            "says 'S1->complete' and changes S1, S2",
        ),
    ],
)
def test_what_is_wrong_is_found(change, name: str, says: str):
    found = failed(FIRST, change(SECOND))
    assert says in found.get(name, ""), found


def test_a_session_that_is_still_known_was_not_erased():
    assert failed(FIRST, SECOND, forgotten=False) == {"DELETE erases the session": "the session is still known"}
