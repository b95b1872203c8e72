"""Annotators' timed lines, as ProAssist collects them in `all_step_descriptions`."""

import re
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from prospect.data.sources.base import explain
from prospect.data.sources.quarantine import QuarantinedRecord
from prospect.dialogue.schema import Annotation

FIELD = "parsed_video_anns.all_step_descriptions"

_TIME = r"(\d+(?:\.\d+)?(?:e-?\d+)?)"
_LINE = re.compile(
    rf"^(\s*-\s+)?(?:\[{_TIME}\s*s?(?:\s*-\s*{_TIME}\s*s?)?\]|{_TIME}s(?:\s*-\s*{_TIME}s)?)[:\s]\s*(\S.*)$"
)
_MISTAKE = re.compile(r"^(.*?)\s*\((?:mistake|ERROR):\s*(.*)\)$")
_NO_BLOCK = re.compile(r'^(?:(?:assistant|user):\s*".*|Summary:.*)$')
"""HoloAssist and WTaG quote what was said, which is in the turns; HoloAssist ends with a summary of the video."""


def read_lines(text: Any, dataset: str, video_id: str) -> tuple[tuple[Annotation, ...], list[QuarantinedRecord]]:
    """The annotations of a video, ordered by `in_order`, and a record for each line that cannot be read.

    `[94.4s-105.2s] attach wheels` is a line of depth 0, ` - [111.0s] screw wheel` a part of the one before it,
    `(mistake: wrong order)` or `(ERROR: wrong tool)` behind it the mistake. Brackets may be missing:
    `168.6s-361.1s mix dough`, ` - 168.6s: reduce flour`.
    """
    if not isinstance(text, str):
        return (), [QuarantinedRecord(dataset, video_id, FIELD, f"lines of text expected, not {text!r:.60}")]
    found: list[Annotation] = []
    unread = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            found += _read(line, bool(found))
        except (ValidationError, ValueError) as error:
            why = explain(error, line)[1] if isinstance(error, ValidationError) else str(error)
            unread.append(QuarantinedRecord(dataset, video_id, f"{FIELD}:{number}", why))
    return in_order(found), unread


def _read(line: str, inside: bool) -> list[Annotation]:
    """[] for an empty line or speech; a part without a line before it gets depth 0."""
    match = _LINE.match(line.rstrip())
    text = match[6] if match else line.strip()
    if not text or _NO_BLOCK.match(text):
        return []
    if match is None:
        raise ValueError(f"the line has no time: {text!r:.60}")
    mistake = _MISTAKE.match(text)
    start, end = match[2] or match[4], match[3] or match[5]
    return [
        Annotation(
            start=float(start),
            end=float(end) if end else None,
            text=mistake[1] if mistake else text,
            depth=int(inside and bool(match[1])),
            mistake=mistake[2] if mistake else "",
        )
    ]


def in_order(lines: Iterable[Annotation]) -> tuple[Annotation, ...]:
    """Lines of depth 0 by their start, each followed by its parts by theirs; equal times in the source's order."""
    groups: list[list[Annotation]] = []
    for line in lines:
        if line.depth == 0 or not groups:
            groups.append([])
        groups[-1].append(line)
    ordered = sorted(groups, key=lambda group: group[0].start)
    return tuple(line for head, *parts in ordered for line in (head, *sorted(parts, key=lambda part: part.start)))
