"""Whether a Matroska or WebM file is whole: told from its elements (RFC 8794), without decoding."""

import io
from typing import IO

_EBML, _SEGMENT, _CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
_READ_BYTES = 1 << 16


def is_whole(file: IO[bytes], size: int) -> bool:
    """Whether the last element ends exactly at the end of the file, or the segment's declared end lies within it.

    Browsers record segments and clusters of unknown size; those are walked element by element.

    Args:
        file: open at any place.
        size: its bytes.
    """
    buffered = io.BufferedReader(file, _READ_BYTES)  # type: ignore[type-var]
    at, segments = 0, 0
    while at < size:
        buffered.seek(at)
        identifier = _number(buffered, keep_marker=True)
        length = _number(buffered, keep_marker=False)
        if identifier is None or length is None:
            return False
        at = buffered.tell()
        segments += identifier == _SEGMENT
        if length >= 0:
            at += length
            if identifier == _SEGMENT:
                return at <= size
        elif identifier not in (_EBML, _SEGMENT, _CLUSTER):
            return False
    return at == size and segments > 0


def _number(file: IO[bytes], *, keep_marker: bool) -> int | None:
    """Read a variable-size integer: 1 to 8 bytes, counted by leading zeros; -1 for an unknown size, None if cut off."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    extra = 8 - first[0].bit_length()
    rest = file.read(extra)
    if len(rest) < extra:
        return None
    mask = 0xFF >> (extra + 1)
    value = int.from_bytes(bytes([first[0] if keep_marker else first[0] & mask]) + rest, "big")
    all_ones = (1 << 7 * (extra + 1)) - 1
    return -1 if not keep_marker and value == all_ones else value
