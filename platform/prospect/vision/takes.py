"""Time stamps of files whose clock starts again, such as two takes of a camcorder joined with `cat`."""

from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING

from av.packet import Packet

if TYPE_CHECKING:
    from av.video.stream import VideoStream

_STEP_BACK_S = 0.1
"""Seconds by which decoding time must step back to count as a clock that starts again, and not as jitter."""

_JUMP_S = 10.0
"""Seconds by which it must jump ahead, in formats whose clock may be set anew; FFmpeg's `dts_delta_threshold`."""


class TakeJoiner:
    """Shifts packets so that each take begins where the pictures of the one before it end.

    Attributes:
        takes: how many takes have begun so far.
    """

    def __init__(self, time_base: Fraction, period: Fraction, *, jumps: bool) -> None:
        """Join the takes of one stream.

        Args:
            time_base: seconds of one unit of a time stamp.
            period: units that a picture without a duration lasts.
            jumps: whether a jump ahead begins a take as well.
        """
        self.takes = 1
        self._back = -_STEP_BACK_S / time_base
        self._ahead = _JUMP_S / time_base if jumps else float("inf")
        self._period = period
        self._clock: int | None = None
        self._end: Fraction | int = 0
        self._first: int | None = None
        self._offset = 0

    def shift(self, packet: "Packet[VideoStream]") -> bool:
        """Move a packet to the joined time; False if its picture refers to another take and must be dropped."""
        if packet.dts is None or packet.pts is None:
            return True
        if self._clock is not None and not self._back <= packet.dts - self._clock <= self._ahead:
            self.takes += 1
            self._first = None
        self._clock = packet.dts
        if self.takes > 1 and not self._belongs(packet):
            return False
        self._end = max(self._end, packet.pts + self._offset + (packet.duration or self._period))
        packet.pts, packet.dts = packet.pts + self._offset, packet.dts + self._offset
        return True

    def _belongs(self, packet: "Packet[VideoStream]") -> bool:
        """Whether a packet of a later take can be decoded without the take before it; a keyframe opens the take."""
        if self._first is None and packet.is_keyframe and packet.pts is not None:
            self._first, self._offset = packet.pts, ceil(self._end) - packet.pts
        return self._first is not None and packet.pts is not None and packet.pts >= self._first
