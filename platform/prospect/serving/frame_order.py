"""The numbers and times of a session's frames."""

from collections.abc import Sequence

from prospect.dialogue.timeline import FPS, nearest_frame
from prospect.errors import session_error
from prospect.protocol.client_messages import MAX_SEQ, FrameAppend


class FrameOrder:
    """The numbers (seq) and times (pts) of a session's frames: each frame is taken once and in order.

    Attributes:
        next_seq: of the frame after the last one taken.
        first_pts: of the first frame.
    """

    def __init__(self) -> None:
        self.next_seq = 0
        self._next_new = 0
        """Follows the last frame that was taken or refused."""
        self.first_pts = 0.0
        self._last_slot: int | None = None

    def first_seq(self, frames: Sequence[FrameAppend]) -> int:
        """Return the seq of the first of `frames`, which follow each other.

        Raises:
            SessionError: `duplicate_frame` or `sequence_gap`.
        """
        first = self.next_seq if frames[0].seq is None else frames[0].seq
        if first < self.next_seq:
            raise session_error(
                "duplicate_frame", f"seq: {first} was taken before, the next one is {self.next_seq}", "seq"
            )
        if first > max(self.next_seq, self._next_new):
            raise session_error(
                "sequence_gap", f"seq: {first} came and {self.next_seq} was expected; send that first", "seq"
            )
        for expected, frame in enumerate(frames[1:], first + 1):
            if frame.seq not in (None, expected):
                raise session_error("sequence_gap", f"seq: {frame.seq} follows {expected - 1} in this request", "seq")
        return first

    def slots(self, frames: Sequence[FrameAppend]) -> list[int]:
        """Return the interval of 1/fps seconds that each frame fills, counted from the session's first frame.

        Raises:
            SessionError: `same_frame`: two pictures lie in one interval, or time runs backwards.
        """
        slots: list[int] = []
        first_pts, last = self.first_pts, self._last_slot
        for frame in frames:
            if last is None:
                first_pts, slot = frame.pts or 0.0, 0
            else:
                slot = last + 1 if frame.pts is None else nearest_frame(frame.pts - first_pts)
                if slot <= last:
                    message = f"pts: {frame.pts} s lies in an interval that has its frame; send one each {1 / FPS:g} s"
                    raise session_error("same_frame", message, "pts")
            slots.append(slot)
            last = slot
        return slots

    def take(self, seq: int, frame: FrameAppend, slot: int) -> None:
        if self._last_slot is None:
            self.first_pts = frame.pts or 0.0
        self._last_slot = slot
        self.next_seq = self._next_new = seq + 1

    def restore(self, next_seq: int, first_pts: float, last_slot: int | None) -> None:
        """Go on behind the frames before `next_seq`, the last of which fills an interval.

        The next one may come from further ahead: nobody here knows which ones were refused, and the client leaves out.
        """
        self.next_seq, self._next_new = next_seq, MAX_SEQ
        self.first_pts, self._last_slot = first_pts, last_slot

    def skip(self, seq: int) -> None:
        """Leave a frame out for good."""
        self.next_seq = self._next_new = seq + 1

    def refuse(self, seq: int) -> None:
        """Let the frame be sent again or left out: a client that sends ahead cannot go back."""
        self._next_new = seq + 1
