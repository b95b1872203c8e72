"""Sparse decoding: the last picture of each interval, and only the pictures that it refers to.

docs/benchmarks.md, "Decoding", compares it with decoding everything and with seeking.
"""

import heapq
import itertools
import re
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import IO, cast

import av
from av.codec import CodecContext
from av.container import InputContainer
from av.format import Flags
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from pyarrow import fs

from prospect.dialogue.timeline import frame_at
from prospect.errors import DataError
from prospect.files import open_filesystem
from prospect.vision import matroska
from prospect.vision.takes import TakeJoiner

MISSING_S = 0.5
"""A video is truncated if its pictures end this much before the length that its container declares."""

MAX_STAY_S = 3600
"""Longest time that the last picture of a Matroska file may stay; beyond it the declared length is taken for wrong."""

_NOT_MOVING = Disposition.attached_pic | Disposition.timed_thumbnails

_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders of the alpha that WebM stores beside the pictures; FFmpeg's own decoders ignore it."""

_REORDER = 32
"""Most pictures (16 pairs of fields) that a codec decodes before one that is displayed earlier."""

_SKIPPABLE = {"h264"}
"""Codecs whose non-reference pictures can be skipped. In HEVC a higher temporal layer may refer to them."""

_IDR = 5
"""H.264 unit type of a picture after which no picture refers to an earlier one."""

_READ_BYTES = 1 << 20
"""Bytes to read at once from a video that is not on a local disk."""


class LostPictureError(Exception):
    """The decoder accepted every packet but did not return a sampled picture."""


class VideoReader:
    """An open video. Times are seconds; time 0 is the first picture that can be decoded.

    Attributes:
        path: as it was given.
        container: the open file.
        stream: the pictures that a player shows, `choose_stream`.
        first: the first picture.
    """

    def __init__(self, path: str, container: InputContainer, stream: VideoStream) -> None:
        self.path = path
        self.stream = stream
        self.codec = _codec(stream)
        self.codec.thread_count = 1  # videos are decoded side by side, each on its own core
        self.container = container
        self._needs_others = stream.duration is None
        for other in container.streams:
            if other is not stream and not self._needs_others:
                other.discard = Discard.all
        self._others_end = Fraction(0)
        self._time_base = stream.time_base or Fraction(1, av.time_base)
        rate = stream.average_rate or stream.guessed_rate
        self._period = 1 / (rate * self._time_base) if rate else Fraction(0)
        resets = Flags.ts_discont in Flags(container.format.flags)
        self.may_restart = resets or self._is_matroska
        self._joiner = TakeJoiner(self._time_base, self._period, jumps=resets)
        self._source = self._demux()
        self._head: list[Packet[VideoStream]] = []
        self.first = self._decode_first()
        self._start = self.first.pts or 0
        self._end: Fraction | int = self._start

    @property
    def takes(self) -> int:
        """How often the clock has started so far, see `TakeJoiner`."""
        return self._joiner.takes

    @property
    def end(self) -> float:
        """When the last picture read so far ends; without a duration it lasts the stream's mean period."""
        return float((self._end - self._start) * self._time_base)

    def packets(self) -> Iterator["Packet[VideoStream]"]:
        """Yield all packets of the stream, in decoding order.

        Raises:
            DataError: a picture lacks its time stamp, or the packets end before the declared length.
        """
        for packet in itertools.chain(self._head, self._source):
            if packet.pts is None:
                raise DataError(f"video {self.path} has pictures without time stamps; remux it, for instance to mkv")
            if self.is_shown(packet):
                self._end = max(self._end, packet.pts + (packet.duration or self._period))
            yield packet
        self._check_complete()

    def pictures(self, fps: float, *, skip: bool = True) -> Iterator[tuple[int, VideoFrame]]:
        """Yield k and the last picture that begins in [k/fps, (k+1)/fps), for each k that has one, in order.

        Args:
            fps: intervals a second.
            skip: decode only what the sampled pictures need.

        Raises:
            DataError: as `packets`, or the video is corrupted.
            LostPictureError: the decoder did not return a sampled picture; only with `skip`.
        """
        held: tuple[int, VideoFrame] | None = None
        planned: list[int] = []
        for frame in self._decode(_sampled(self, fps, planned) if skip else self.packets()):
            if frame.pts is None or frame.is_corrupt:
                raise DataError(f"video {self.path} is corrupted near {self.end:.1f} s")
            interval = self.interval(frame.pts, fps)
            if held is not None and interval > held[0]:
                _expect(held[1], planned if skip else None)
                yield held
            held = interval, frame
        if held is not None:
            _expect(held[1], planned if skip else None)
            yield held
        if planned:
            raise LostPictureError

    def interval(self, pts: int, fps: float) -> int:
        """Return the interval that a time stamp lies in; negative before time 0."""
        return frame_at(float((pts - self._start) * self._time_base), fps)

    def is_shown(self, packet: "Packet[VideoStream]") -> bool:
        """Whether a packet is displayed: not cut by an edit list, nor before the first picture that can be decoded."""
        return not packet.is_discard and packet.pts is not None and packet.pts >= self._start

    def _decode(self, packets: Iterable["Packet[VideoStream]"]) -> Iterator[VideoFrame]:
        for packet in packets:
            yield from self.codec.decode(packet)
        yield from self.codec.decode(None)

    def _demux(self) -> Iterator["Packet[VideoStream]"]:
        """Join takes and skip empty packets: they repeat the last picture, but would end the decoder's work."""
        for packet in self.container.demux() if self._needs_others else self.container.demux(self.stream):
            if packet.stream is self.stream and packet.size:
                picture = cast("Packet[VideoStream]", packet)
                if not self.may_restart or self._joiner.shift(picture):
                    yield picture
                if self.takes > 1 and self._is_matroska:  # FFmpeg reads no more than two
                    raise DataError(f"video {self.path} is several Matroska files in one; join them with mkvmerge")
            elif packet.pts is not None:
                self._others_end = max(self._others_end, (packet.pts + (packet.duration or 0)) * packet.time_base)

    def _decode_first(self) -> VideoFrame:
        for packet in self._source:
            self._head.append(packet)
            if pictures := self.codec.decode(packet):
                break
        else:
            pictures = self.codec.decode(None)
        if not pictures:
            raise DataError(f"video {self.path} holds no picture")
        self.codec.flush_buffers()
        return pictures[0]

    def _check_complete(self) -> None:
        """Compare the end that was read with the declared length, of the stream or else of the container.

        Some containers (mkv) declare a length from 0, wherever the pictures start, so the later end counts. The last
        picture of a whole Matroska file stays until the declared end. Of joined takes the declared length is that of
        one of them.
        """
        if self.takes > 1:
            return
        end, declared = max(self.end, float(self._end * self._time_base)), 0.0
        if self.stream.duration is not None:
            declared = float(self.stream.duration * self._time_base)
        elif self.container.duration is not None:
            end, declared = max(end, float(self._others_end)), self.container.duration / av.time_base
        if end < declared - MISSING_S:
            if declared - end <= MAX_STAY_S and self._is_matroska and self._is_whole():
                self._end = Fraction(declared) / self._time_base
                return
            raise DataError(f"video {self.path} is truncated: {end:.1f} s of {declared:.1f} s can be read")

    @property
    def _is_matroska(self) -> bool:
        return "matroska" in self.container.format.name

    def _is_whole(self) -> bool:
        filesystem, name = open_filesystem(self.path)
        with filesystem.open_input_file(name) as file:
            return matroska.is_whole(cast(IO[bytes], file), file.size())


@contextmanager
def open_video(path: str) -> Iterator[VideoReader]:
    """Open a video by path or URL; errors of file or decoder become a DataError, also while it is read.

    Raises:
        DataError: missing, unreadable, empty, corrupted, or not a video.
    """
    with open_container(path) as (container, stream):
        yield VideoReader(path, container, stream)


@contextmanager
def open_container(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the file of a video, and choose its stream; nothing is decoded. Raises as `open_video`."""
    try:
        with _open_file(path) as file, av.open(file, mode="r", buffer_size=_READ_BYTES) as container:
            stream = choose_stream(container)
            if stream is None:
                raise DataError(f"video {path} has no video stream")
            yield container, stream
    except av.FFmpegError as error:
        raise DataError(f"video {path} is truncated, corrupted or not a video: {error.strerror}") from error
    except OSError as error:
        raise DataError(f"video {path} cannot be read: {error.strerror or error}") from error


def moving_streams(container: InputContainer) -> list[VideoStream]:
    """List the video streams that are neither covers nor thumbnails, in the order of the file."""
    return [stream for stream in container.streams.video if not stream.disposition & _NOT_MOVING]


def choose_stream(container: InputContainer) -> VideoStream | None:
    """Choose the moving pictures that FFmpeg would, or the first ones where it prefers a cover."""
    moving = moving_streams(container)
    best = container.streams.best("video")
    chosen = [stream for stream in moving if best is not None and stream.index == best.index]
    return next(iter(chosen or moving), None)


def _codec(stream: VideoStream) -> VideoCodecContext:
    """Return the stream's decoder, or one that also decodes its alpha."""
    has_alpha = {name.lower(): value for name, value in stream.metadata.items()}.get("alpha_mode") == "1"
    name = _WITH_ALPHA.get(stream.codec_context.name)
    return cast(VideoCodecContext, CodecContext.create(name, "r")) if name and has_alpha else stream.codec_context


@contextmanager
def _open_file(path: str) -> Iterator[str | IO[bytes]]:
    """Give FFmpeg the path of a local file, or an open file of any other file system."""
    filesystem, name = open_filesystem(path)
    info = filesystem.get_file_info(name)
    if info.type != fs.FileType.File:
        raise DataError(f"video {path} does not exist")
    if info.size == 0:
        raise DataError(f"video {path} is an empty file")
    with filesystem.open_input_file(name) as file:  # has better error messages than FFmpeg
        yield f"file:{name}" if isinstance(filesystem, fs.LocalFileSystem) else cast(IO[bytes], file)


def _sampled(reader: VideoReader, fps: float, planned: list[int]) -> Iterator["Packet[VideoStream]"]:
    """Yield the packets that the sampled pictures need.

    Two kinds are left out: non-reference pictures that are not sampled, which the decoder skips; and all packets from
    the last sampled picture of a closed group to the next keyframe. In an open group, pictures shown before that
    keyframe may refer to both sides. `planned` becomes a heap of the time stamps of sampled pictures that
    were sent to the decoder.
    """
    skippable = reader.codec.name in _SKIPPABLE
    rest: list[Packet[VideoStream]] = []
    for packet, wanted, opens_group in _planned(reader, fps):
        if opens_group and rest and _is_clean(packet, reader.codec):
            rest.clear()
        rest.append(packet)
        if wanted:
            heapq.heappush(planned, cast(int, packet.pts))
            for needed in rest:
                reader.codec.skip_frame = "NONREF" if skippable and needed is not packet else "DEFAULT"
                yield needed
            rest.clear()


def _is_clean(keyframe: "Packet[VideoStream]", codec: VideoCodecContext) -> bool:
    """Whether no later picture refers to one before this keyframe.

    In H.264 that is true of IDR pictures only; demuxers also mark other intra pictures, and the first of a gradual
    refresh, as keyframes.
    """
    return codec.name != "h264" or _IDR in _nal_types(bytes(keyframe), codec.extradata or b"")


def _nal_types(data: bytes, header: bytes) -> set[int]:
    """Collect the H.264 unit types of a packet, split by start codes, or by lengths if `header` is an avcC box."""
    if header[:1] != b"\x01":
        return {match[0][-1] & 31 for match in re.finditer(rb"\x00\x00\x01[\x00-\xff]", data)}
    bytes_of_length, at, types = (header[4] & 3) + 1, 0, set()
    while at + bytes_of_length < len(data):
        types.add(data[at + bytes_of_length] & 31)
        at += bytes_of_length + int.from_bytes(data[at : at + bytes_of_length], "big")
    return types


def _planned(reader: VideoReader, fps: float) -> Iterator[tuple["Packet[VideoStream]", bool, bool]]:
    """Yield each packet, whether its picture is sampled, and whether it may begin a closed group.

    Looks `_REORDER` packets ahead, since containers may lack decoding times.
    """
    queue: deque[tuple[int, Packet[VideoStream]]] = deque()
    newest: list[int] = []
    last: dict[int, int] = {}
    settled = -1  # no further picture falls into an interval below it

    def decided(until: float) -> Iterator[tuple["Packet[VideoStream]", bool, bool]]:
        while queue and queue[0][0] < until:
            interval, packet = queue.popleft()
            pts = cast(int, packet.pts)
            opens = packet.is_keyframe and interval >= 0 and all(cast(int, later.pts) > pts for _, later in queue)
            yield packet, last.get(interval) == pts, opens

    for packet in reader.packets():
        pts = cast(int, packet.pts)
        interval = reader.interval(pts, fps) if reader.is_shown(packet) else -1
        queue.append((interval, packet))
        if interval >= 0:
            if interval < settled:
                raise LostPictureError
            last[interval] = max(pts, last.get(interval, pts))
        heapq.heappush(newest, pts)
        if len(newest) > _REORDER:
            settled = max(settled, reader.interval(heapq.heappop(newest), fps))
            yield from decided(settled)
    yield from decided(float("inf"))


def _expect(frame: VideoFrame, planned: list[int] | None) -> None:
    if planned is not None and (not planned or heapq.heappop(planned) != frame.pts):
        raise LostPictureError
