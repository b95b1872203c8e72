"""What a gateway keeps of a session, so that another engine continues it. Imports no torch."""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prospect.dialogue.state import format_delta
from prospect.protocol.messages import FrameDecision
from prospect.streaming.types import Decision

Json = dict[str, Any]


@dataclass(frozen=True)
class SentFrame:
    """A frame as its client sent it; its features [I, D] are None once they are lost."""

    seq: int
    embedding: np.ndarray | None
    texts: tuple[str, ...] = ()

    def wired(self) -> tuple[int, list[str], bytes, list[int]]:
        """As an engine takes it: (seq, texts, float16 bytes, shape)."""
        assert self.embedding is not None
        data = np.ascontiguousarray(self.embedding, np.float16)
        return self.seq, list(self.texts), data.tobytes(), list(data.shape)


@dataclass(frozen=True)
class DecidedFrame:
    """A frame with what was decided at it."""

    frame: int
    sent: SentFrame
    events: Json
    """{"user", "delta", "utterance"}, as a session log has them."""
    number: int | None = None
    """Of the engine's event; None with `told`."""
    told: FrameDecision | None = None
    """What its client was told; None where the store did not keep it."""

    @property
    def acts(self) -> bool:
        """Whether anything was said or changed at it."""
        return any(self.events.values())

    @classmethod
    def of(cls, sent: SentFrame, decision: Decision, number: int, told: FrameDecision) -> "DecidedFrame":
        delta = format_delta(decision.delta)
        events = {"user": list(sent.texts), "delta": delta, "utterance": decision.utterance}
        return cls(decision.frame, sent, events, number, told)


_PROGRESS = (
    "restraint", "randomness", "counters", "state", "opening", "summary", "stale", "forgot", "patched", "first_frame",
)  # fmt: skip
"""Fields of `prospect.streaming.session.log.progress_json`."""


class ReplayLog:
    """A session's log at its last refresh, and the frames decided since.

    Attributes:
        base: the log; None until the engine has fed the first context.
        progress: what the engine said of the session behind the last decided frame, if any was decided since `base`.
        frames: decided since `base`.
        earlier: some that were decided before, whose decisions a client may lack.
    """

    def __init__(self, base: Json | None = None, progress: Json | None = None, frames: Iterable[DecidedFrame] = ()):
        self.base, self.progress, self.frames = base, progress, list(frames)
        self.earlier: list[DecidedFrame] = []

    def rebase(self, base: Json, remembered: int) -> None:
        """Begin anew at a log that holds everything before, and remember the last decisions."""
        self.earlier = [*self.earlier, *self.frames][-remembered:]
        self.base, self.progress, self.frames = base, None, []

    def decided(self, frame: DecidedFrame) -> None:
        self.frames.append(frame)

    @property
    def counters(self) -> dict[str, int]:
        """The session's counters behind the last decided frame."""
        latest = self.progress or self.base
        return dict(latest["counters"]) if latest else {}

    def skip(self, count: int) -> None:
        """Note that `count` silent frames were decided of which nothing else is known."""
        latest = self.progress or self.base
        if count and latest is not None:
            counters = latest["counters"] | {"frames": latest["counters"]["frames"] + count}
            known = {"first_frame": self.base["segment"]["first_frame"], **latest} if self.base else latest
            self.progress = {name: known[name] for name in _PROGRESS} | {"counters": counters}

    def log(self, session_id: str, waiting: Iterable[SentFrame], texts: Iterable[str]) -> Json:
        """Return the log of the session as it is now.

        Args:
            session_id: of the session.
            waiting: frames that are not decided.
            texts: of the user, since the last of these.
        """
        assert self.base is not None
        waiting = [frame for frame in waiting if frame.embedding is not None]
        queue = {"frames": pack([frame.embedding for frame in waiting]), "texts": [list(f.texts) for f in waiting]}
        log = {**self.base, "session_id": session_id, "waiting": queue, "texts": list(texts)}
        if self.progress is not None:
            log["since"] = {
                "at": [frame.frame for frame in self.frames],
                "events": [frame.events for frame in self.frames],
                "frames": None if self.num_lost else pack([frame.sent.embedding for frame in self.frames]),
                "progress": self.progress,
            }
        return log

    @property
    def num_lost(self) -> int:
        """Frames since the base whose features are lost: the next context cannot show them."""
        if self.base is None or self.progress is None:
            return 0
        decided = self.progress["counters"]["frames"] - self.base["counters"]["frames"]
        return decided - sum(frame.sent.embedding is not None for frame in self.frames)


def pack(arrays: Iterable[np.ndarray | None]) -> Json:
    """Pack float16 arrays [I, D] as a session log has them, with plain bytes."""
    rows = [np.ascontiguousarray(array, np.float16) for array in arrays if array is not None]
    shape = list(rows[0].shape) if rows else []
    return {"count": len(rows), "shape": shape, "float16": b"".join(row.tobytes() for row in rows)}


def unpack(packed: Mapping[str, Any]) -> list[np.ndarray]:
    """Unpack what `pack` made, or what stands in a log as base64."""
    if not packed["count"]:
        return []
    data = packed["float16"]
    rows = np.frombuffer(data if isinstance(data, bytes) else base64.b64decode(data), np.float16)
    return list(rows.reshape(packed["count"], *packed["shape"]))
