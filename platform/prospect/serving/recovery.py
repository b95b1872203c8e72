"""How a gateway continues the session of another one: what the store and the engine know becomes a `Stream` again."""

from collections import deque
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from prospect.protocol.messages import DurableMessage, FrameDecision, ResponseDelta, ServerMessage, StateMap
from prospect.serving.events import unpack_event
from prospect.serving.replay import DecidedFrame, Json, ReplayLog, SentFrame, unpack
from prospect.serving.store import SessionRow
from prospect.serving.stream import Stream
from prospect.streaming.types import Decision, TextPiece

Said = Sequence[tuple[int | None, ServerMessage]]
"""Durable messages, each with the number of the engine's event that it comes from."""
Told = Sequence[tuple[int, FrameDecision]]
"""Decisions, each with the number of the engine's event."""
_NOWHERE: dict[str, Any] = {"decided": -1, "slot": None, "first_pts": 0.0, "number": 0, "settled": 0, "texts": {}}
"""Position of a session that was never written."""
_STATE: TypeAdapter[StateMap] = TypeAdapter(StateMap)


def recall(stream: Stream, row: SessionRow) -> None:
    """Begin where the store says that the session stands."""
    position = _NOWHERE | row.position
    stream.recall_tokens(row.tokens)
    stream.state = _STATE.validate_python(row.state)
    stream.decided, stream.decided_slot = position["decided"], position["slot"]
    stream.number, stream.settled_number = position["number"], position["settled"]
    stream.inbox.order.restore(stream.decided + 1, position["first_pts"], position["slot"])


def adopt(stream: Stream, row: SessionRow, adopted: Json, said: Said) -> None:
    """Continue what the engine has.

    Args:
        stream: as `recall` left it.
        row: of the session.
        adopted: the engine's answer.
        said: what the store has of the messages.
    """
    written, seqs, log = stream.number, adopted["seqs"], adopted["log"]
    recent = [(number, seq, unpack_event(packed)) for number, seq, packed in adopted["recent"]]
    decided = [(number, seq, event) for number, seq, event in recent if isinstance(event, Decision)]
    told = [(number, FrameDecision.of(seq, event)) for number, seq, event in decided if seq is not None]
    stream.journal.restore(*_merge(said, told, written, stream.decided))
    for index, (number, seq, event) in enumerate(recent):
        if isinstance(event, TextPiece):
            stream.pieces[number] = event
            at = next((seq for _, seq, _ in recent[index:] if seq is not None), seqs[0] if seqs else stream.decided)
            if number > written:
                stream.say(ResponseDelta(seq=at, frame=event.frame, text=event.text), number)
            continue
        stream.settle(number)
        if isinstance(event, Decision):
            assert seq is not None
            stream.decided = max(stream.decided, seq)
            if number > written:
                stream.say_decision(FrameDecision.of(seq, event), event, number, acts=True)
        elif number > written:
            stream.say_event(number, event)
    stream.number = adopted["number"]
    taken = seqs[-1] if seqs else stream.decided
    stream.inbox.recall_texts((_NOWHERE | row.position)["texts"], taken)
    stream.inbox.order.restore(taken + 1, stream.inbox.order.first_pts, stream.decided_slot)
    stream.inbox.adopt(_waiting(seqs, log), stream.decided_slot)
    if log is not None:
        stream.state = dict(zip(stream.state, log["state"], strict=True))
        stream.take_base({**log, "waiting": None, "texts": []})
    stream.take_early_news()


def _waiting(seqs: Sequence[int], log: Json | None) -> list[SentFrame]:
    """The frames that wait in the engine; without their features while its first context is being fed."""
    if log is None:
        return [SentFrame(seq, None) for seq in seqs]
    features, texts = unpack(log["waiting"]["frames"]), log["waiting"]["texts"]
    return [SentFrame(seq, each, tuple(before)) for seq, each, before in zip(seqs, features, texts, strict=True)]


def recover(stream: Stream, row: SessionRow, frames: Sequence[DecidedFrame], said: Said, decided: int | None) -> None:
    """Continue what the store has, the engine being gone as well.

    Args:
        stream: as `recall` left it.
        row: of the session.
        frames: as far as they are kept: those decided since its base, and some before.
        said: what the store has of the messages.
        decided: seq of the last frame whose decision the client has: the store may lag behind by silent ones.
    """
    based = row.base["counters"]["frames"] if row.base else 0
    replay = ReplayLog(row.base, row.mark, [each for each in frames if each.frame >= based])
    replay.earlier = [each for each in frames if each.frame < based]
    lag = max((stream.decided if decided is None else decided) - stream.decided, 0)
    replay.skip(lag)
    stream.replay = replay
    stream.decided += lag
    stream.inbox.recall_texts((_NOWHERE | row.position)["texts"], stream.decided)
    stream.inbox.order.restore(stream.decided + 1, stream.inbox.order.first_pts, stream.decided_slot)
    stream.pieces = {
        number: TextPiece(message.frame, message.text)
        for number, message in said
        if isinstance(message, ResponseDelta) and number is not None and number > stream.settled_number
    }
    told = [(each.number, each.told) for each in frames if each.number is not None and each.told is not None]
    messages, _, gone = _merge(said, told, stream.number, stream.decided)
    stream.journal.restore(messages, row.last_event, gone)


def _merge(said: Said, told: Told, written: int, decided: int) -> tuple[list[ServerMessage], int, int]:
    """Put decisions that are known among the durable messages that the store has.

    Args:
        said: what the store has.
        told: by the number of their event, in order.
        written: number of the last event that the store has.
        decided: seq of the last decided frame.

    Returns:
        The messages, the number of the last durable one, and the seq of the last decision that is not among them.
    """
    first = told[0][1].seq - 1 if told else decided
    due = deque((number, message) for number, message in told if number <= written)
    merged: list[ServerMessage] = []
    for source, message in said:
        while due and source is not None and due[0][0] <= source:
            merged.append(due.popleft()[1])
        merged.append(message)
    merged.extend(message for _, message in due)
    last = max((message.event or 0 for _, message in said if isinstance(message, DurableMessage)), default=0)
    return merged, last, first
