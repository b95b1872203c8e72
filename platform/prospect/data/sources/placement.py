"""Places dialogues on the frames of their videos, and finds events outside of them."""

from collections.abc import Callable, Iterable

from prospect.data.sources.quarantine import QuarantinedRecord
from prospect.dialogue.schema import Dialogue
from prospect.dialogue.timeline import Timeline, frame_at, num_frames, place


def place_all(
    dialogues: Iterable[Dialogue], frames_of: Callable[[str], int | None]
) -> tuple[list[tuple[Dialogue, Timeline]], list[QuarantinedRecord]]:
    """Place every dialogue on its timeline; events outside the video are quarantined.

    Args:
        dialogues: the records.
        frames_of: number of frames of a video by its id (from its embedding), None if unknown.
    """
    placed = [
        (dialogue, place(dialogue, total_frames(dialogue, frames_of(dialogue.video_id)))) for dialogue in dialogues
    ]
    quarantined = [
        QuarantinedRecord(dialogue.dataset, f"{dialogue.video_id}/{dialogue.dialogue_id}", event.what, event.reason)
        for dialogue, timeline in placed
        for event in timeline.quarantined
    ]
    return placed, quarantined


def total_frames(dialogue: Dialogue, known: int | None = None) -> int:
    """Number of frames of the video: as counted, else as the source states, else enough for all its events."""
    if known is not None:
        return known
    if dialogue.end is not None:
        return num_frames(dialogue.end)
    return dialogue.last_frame or _frames_for_events(dialogue)


def _frames_for_events(dialogue: Dialogue) -> int:
    times = [turn.time for turn in dialogue.turns] + [change.time for change in dialogue.transitions()]
    longest = frame_at(max(times, default=0.0)) + 1 + len(dialogue.turns)
    return max(place(dialogue, longest).events, default=0) + 1
