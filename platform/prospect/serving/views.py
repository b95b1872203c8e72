"""What a client is told of a session as it is now."""

from typing import Any

from prospect.protocol.messages import CAPABILITIES, SessionCreated, SessionView, Thresholds, Transcript
from prospect.serving.stream import Stream


def created_of(stream: Stream) -> SessionCreated:
    """The answer to whoever opens or resumes a session."""
    card = stream.model.card
    return SessionCreated(
        session_id=stream.name,
        resume=stream.handle,
        fps=card.fps,
        fingerprint=card.fingerprint,
        tokens_per_frame=card.tokens_per_frame,
        next_seq=stream.next_seq,
        last_event=stream.journal.last_event,
        capabilities=CAPABILITIES,
        thresholds=_thresholds(stream),
        state=stream.state,
    )


async def record_of(stream: Stream) -> dict[str, Any]:
    """The session so far as a canonical record, under the name that the client knows."""
    return await stream.call("record") | {"video_id": stream.name, "dialogue_id": stream.name}


async def transcript_of(stream: Stream) -> Transcript:
    """What was said and what changed, by frame."""
    return Transcript(session_id=stream.name, **await stream.call("history"))


def view_of(stream: Stream) -> SessionView:
    """The answer to whoever asks for a session."""
    return SessionView(
        session_id=stream.name,
        goal=stream.update.goal,
        steps=list(stream.update.steps),
        thresholds=_thresholds(stream),
        state=stream.state,
        next_seq=stream.next_seq,
        waiting=len(stream.inbox.pending),
        counters=stream.replay.counters,
    )


def _thresholds(stream: Stream) -> Thresholds:
    own = stream.update.thresholds.model_dump(exclude_none=True)
    return Thresholds(**{**stream.model.thresholds(stream.update.dataset), **own})
