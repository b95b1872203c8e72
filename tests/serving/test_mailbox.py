"""A stream's mailbox: every message has its answer, in order, and none of its queues grows without end."""

import asyncio
import json

from prospect.errors import SessionError
from prospect.protocol.messages import FrameAppend, TextAppend
from prospect.serving import mailbox
from prospect.serving.mailbox import MAX_FRAMES, MAX_OTHERS, Mailbox, TooMany

TEXT = TextAppend(text="Hello.").model_dump_json().encode()


def frame(seq: int, size: int = 10) -> bytes:
    return FrameAppend(seq=seq, image=bytes(size)).model_dump_json(exclude_none=True).encode()


def drain(box: Mailbox) -> list:
    async def all_of_it() -> list:
        box.end()
        found = []
        while (mail := await box.get()) is not None:
            found.append(mail)
        return found

    return asyncio.run(all_of_it())


def test_of_too_many_frames_the_oldest_are_dropped_and_keep_their_places():
    box = Mailbox()
    box.put(TEXT)
    for seq in range(MAX_FRAMES + 2):
        assert box.put(frame(seq))
    text, *frames = drain(box)
    assert text.text == "Hello."
    assert [type(mail) for mail in frames] == [TooMany] * 2 + [FrameAppend] * MAX_FRAMES
    assert [getattr(mail, "frame", mail).seq for mail in frames] == list(range(MAX_FRAMES + 2))


def test_frames_are_bounded_by_their_bytes_too(monkeypatch):
    monkeypatch.setattr(mailbox, "MAX_BYTES", 1000)
    box = Mailbox()
    for seq in range(5):
        box.put(frame(seq, 300))
    assert [isinstance(mail, TooMany) for mail in drain(box)] == [True, True, True, False, False]


def test_mistakes_stay_in_order_and_a_flood_of_other_messages_finds_no_room():
    box = Mailbox()
    box.put(b"{")
    box.put(json.dumps({"type": "state.patch", "state": {}}).encode())
    mistake, patch = drain(box)
    assert isinstance(mistake, SessionError)
    assert patch.type == "state.patch"
    box = Mailbox()
    taken = [box.put(TEXT) for _ in range(MAX_OTHERS + MAX_FRAMES + 1)]
    assert taken.count(False) == 1
