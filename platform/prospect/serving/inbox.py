"""What a client has sent and the engine has not decided: frames in order, and the texts that join them."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from prospect.protocol.messages import FrameAppend
from prospect.serving.frame_order import FrameOrder
from prospect.serving.replay import SentFrame
from prospect.streaming.waiting import drop_oldest, send_ahead

Text = tuple[str, str]
"""(id, text) of what the user said; the id is empty where the client gave none."""


@dataclass
class Pending:
    """A frame that is taken and not decided."""

    sent: SentFrame
    text_ids: tuple[str, ...]
    """Of its texts."""
    arrived: float
    droppable: bool
    """False where a request waits for it."""
    slot: int
    in_engine: bool = False

    @property
    def texts(self) -> list[Text]:
        """Its texts with their ids."""
        return list(zip(self.text_ids, self.sent.texts, strict=True))


class Inbox:
    """A stream's frames and texts.

    Attributes:
        order: their numbers and times.
        pending: frames that are taken and not decided, in order.
    """

    def __init__(self) -> None:
        self.order = FrameOrder()
        self.pending: deque[Pending] = deque()
        self._texts: dict[int, list[Text]] = {}
        """By seq of the frame that they join."""

    # Texts -------------------------------------------------------------------------------------------------

    @property
    def waiting_texts(self) -> list[Text]:
        """Texts whose frame has not come."""
        return [each for texts in self._texts.values() for each in texts]

    def add_text(self, text: Text) -> None:
        """Let a text join the next frame."""
        self._texts.setdefault(self.order.next_seq, []).append(text)

    def texts_by_seq(self) -> dict[str, list[Text]]:
        """Return all texts that are not decided, by seq of their frames, for JSON."""
        taken = {str(frame.sent.seq): frame.texts for frame in self.pending if frame.texts}
        return taken | {str(seq): texts for seq, texts in self._texts.items()}

    def recall_texts(self, texts: Mapping[str, Sequence[Sequence[str]]], after: int) -> None:
        """Take back what `texts_by_seq` made, of frames after seq `after`."""
        known = {int(seq): [(text_id, text) for text_id, text in each] for seq, each in texts.items()}
        self._texts = {seq: each for seq, each in known.items() if seq > after}

    # Frames ------------------------------------------------------------------------------------------------

    def take(self, seq: int, frame: FrameAppend, slot: int, embedding: np.ndarray, droppable: bool) -> None:
        """Take the next frame, with the texts before it."""
        due = [text for each in sorted(self._texts) if each <= seq for text in self._texts.pop(each)]
        sent = SentFrame(seq, embedding, tuple(text for _, text in due))
        ids = tuple(text_id for text_id, _ in due)
        self.pending.append(Pending(sent, ids, time.monotonic(), droppable, slot))
        self.order.take(seq, frame, slot)

    def adopt(self, frames: Sequence[SentFrame], slot: int | None) -> None:
        """Note the frames that wait in an engine, behind one that filled interval `slot`."""
        now = time.monotonic()
        for frame in frames:
            self.pending.append(Pending(frame, ("",) * len(frame.texts), now, True, slot or 0, in_engine=True))

    def leave_engine(self) -> list[SentFrame]:
        """Note that no engine has any frame; returns those whose features were only there."""
        for frame in self.pending:
            frame.in_engine = False
        lost = [frame.sent for frame in self.pending if frame.sent.embedding is None]
        self.pending = deque(frame for frame in self.pending if frame.sent.embedding is not None)
        return lost

    def restart_clocks(self) -> None:
        """Let no frame have waited so far: that an engine died is not its client's fault."""
        for frame in self.pending:
            frame.arrived = time.monotonic()

    def send_ahead(self, most: int) -> list[SentFrame]:
        """Return the next frames for an engine that may have `most` at once; they count as its own then."""
        return [frame.sent for frame in send_ahead(self.pending, most)]

    def drop(self, most: int, since: float | None) -> SentFrame | None:
        """Drop the oldest frame if it has to go, as `drop_oldest` says; its texts stay."""
        found = drop_oldest(self.pending, most, since)
        if found is None:
            return None
        dropped, behind = found
        if behind is not None:
            behind.sent = replace(behind.sent, texts=dropped.sent.texts + behind.sent.texts)
            behind.text_ids = dropped.text_ids + behind.text_ids
        elif dropped.texts:
            self._texts.setdefault(self.order.next_seq, [])[:0] = dropped.texts
        return dropped.sent

    def position(self) -> dict[str, Any]:
        """Return what a successor needs beside the last decided frame, for JSON."""
        return {"first_pts": self.order.first_pts, "texts": self.texts_by_seq()}
