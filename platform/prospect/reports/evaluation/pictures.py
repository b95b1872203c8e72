"""Pictures for the timelines of a page, within a limit for the whole page."""

import math
from collections.abc import Mapping, Sequence

from prospect.errors import DataError
from prospect.evaluation.settings import ReportSettings
from prospect.reports.evaluation.dialogue import DialogueTimeline, Picture
from prospect.reports.preview.thumbnails import pictures_of

SIDE = 240
"""Longer side, px."""


def add_pictures(timelines: Sequence[DialogueTimeline], videos: Mapping[str, str], settings: ReportSettings) -> str:
    """Give `timelines`, the most important first, their pictures; returns a sentence on what was left out, or ''.

    Args:
        timelines: of the dialogues that are to have pictures.
        videos: path or URL of the file by video id.
        settings: numbers and limits.
    """
    room, skipped = settings.megabytes * 1e6, 0
    for timeline in timelines:
        if room <= 0:
            timeline.no_pictures = (
                f"the page's pictures take evaluation.report.megabytes={settings.megabytes:g} already"
            )
            skipped += 1
            continue
        found = _pictures(timeline, videos.get(timeline.video_id), settings.pictures)
        size = sum(len(picture.uri) for picture in found)
        if size > room:
            timeline.no_pictures = f"they would exceed evaluation.report.megabytes={settings.megabytes:g}"
            skipped += 1
        else:
            timeline.pictures, room = found, room - size
    if not skipped:
        return ""
    return f"{skipped} of {len(timelines)} timelines lack pictures: evaluation.report.megabytes={settings.megabytes:g}"


def _pictures(timeline: DialogueTimeline, video: str | None, most: int) -> list[Picture]:
    """Half of them evenly spaced, for the row; the others of events."""
    if video is None:
        timeline.no_pictures = "no video file was found"
        return []
    span = timeline.span
    row = max(1, min(most - most // 2, len(span)))
    ends = [span.start + (len(span) * (number + 1)) // row for number in range(row)]
    even = {stop - 1: (start, stop) for start, stop in zip([span.start, *ends], ends, strict=False)}
    frames = sorted({event.frame for event in timeline.events} - even.keys())
    others = frames[:: max(1, math.ceil(len(frames) / max(1, most // 2)))] if most > 1 else []
    try:
        found = pictures_of(video, {*even, *others}, SIDE)
    except DataError as error:
        timeline.no_pictures = str(error)
        return []
    if not found:
        timeline.no_pictures = f"{video} has no frame of this dialogue"
    pictures = []
    for frame in sorted(found):
        start, stop = even.get(frame, (frame, frame))
        left, width = (start - span.start) / len(span), (stop - start) / len(span)
        pictures.append(Picture(frame, found[frame], left, width))
    return pictures
