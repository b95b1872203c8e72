"""Counts and writes down what happens to a gateway's sessions. Costs a few microseconds a message."""

import logging
import secrets
import time

from prospect.monitoring import Readings
from prospect.protocol.messages import (
    ErrorMessage,
    FrameDropped,
    ServerMessage,
    SessionClosed,
    SessionGoingAway,
    SessionMoved,
    SessionRefreshed,
)
from prospect.serving.logs import about
from prospect.serving.replay import Json
from prospect.serving.session_ids import name_of
from prospect.streaming.types import Decision

log = logging.getLogger(__name__)


class Monitor:
    """Of one gateway.

    Attributes:
        name: of the gateway, for others.
        readings: for operators.
        store: `none`, `ok`, or `away` while the store is away or behind.
        store_lag: seconds for which its oldest change has not been written.
    """

    def __init__(self) -> None:
        self.name, self.readings = secrets.token_hex(4), Readings()
        self.store, self.store_lag = "none", 0.0
        self._dropped = self._moves = 0
        self._last_move: tuple[float, float, int] | None = None
        """(seconds since 1970, for how long, frames lost)."""

    def summary(self) -> Json:
        """What other gateways tell about this one."""
        return {
            "dropped": self._dropped,
            "moves": self._moves,
            "last_move": self._last_move,
            "store": self.store,
            "store_lag": self.store_lag,
        }

    def opened(self, session_id: str, epoch: int, resumed: bool = False) -> None:
        """Note that a stream begins."""
        what = "resumed" if resumed else "opened"
        self.readings.count(f"prospect_sessions_{what}_total")
        log.info("a session is %s", what, extra=about(f"session.{what}", session=session_id, epoch=epoch))

    def took(self, picture: bool) -> None:
        """Note a frame that was taken."""
        self.readings.count("prospect_frames_total", "picture" if picture else "embedding")

    def decided(self, session_id: str, epoch: int, decision: Decision) -> None:
        """Note a decision."""
        speaks, updates = decision.utterance is not None, bool(decision.delta)
        act = ("both" if updates else "speak") if speaks else ("update" if updates else "silent")
        self.readings.count("prospect_decisions_total", act)
        if act != "silent":
            fields = about("frame.acted", session=session_id, frame=decision.frame, epoch=epoch, act=act)
            log.info("a frame is decided", extra=fields)

    def waited(self, seconds: float) -> None:
        """Note for how long a frame waited for its decision."""
        self.readings.observe("prospect_decision_seconds", seconds)

    def refused(self, code: str, session_id: str | None = None) -> None:
        """Note a message or request that was refused."""
        self.readings.count("prospect_refused_total", code)
        log.info("refused", extra=about("message.refused", session=session_id, code=code))

    def failed(self, session_id: str, epoch: int, reason: str) -> None:
        """Note a session that met a defect."""
        self._ended(session_id, epoch, "failed", logging.ERROR, f": {reason}")

    def said(self, session_id: str, epoch: int, message: ServerMessage) -> None:
        """Note what a session says beside decisions."""
        match message:
            case FrameDropped(seq=seq):
                self._dropped += 1
                self.readings.count("prospect_frames_dropped_total")
                log.info("dropped", extra=about("frame.dropped", session=session_id, seq=seq, epoch=epoch))
            case SessionRefreshed(frame=frame, tokens_before=before, tokens_after=after):
                self.readings.count("prospect_refreshes_total")
                tokens = {"tokens_before": before, "tokens_after": after}
                fields = about("session.refreshed", session=session_id, frame=frame, epoch=epoch, **tokens)
                log.info("refreshed", extra=fields)
            case SessionMoved():
                self._moved(session_id, epoch, message)
            case SessionClosed(reason=reason):
                self._ended(session_id, epoch, reason)
            case SessionGoingAway():
                self._ended(session_id, epoch, "going_away")
            case ErrorMessage(code=code) if code != "session_failed":
                self.refused(code, session_id)

    def _moved(self, session_id: str, epoch: int, moved: SessionMoved) -> None:
        self._moves += 1
        self._last_move = (time.time(), moved.seconds, moved.lost_frames)
        self.readings.observe("prospect_move_seconds", moved.seconds)
        if moved.lost_frames:
            self.readings.count("prospect_frames_lost_total", by=moved.lost_frames)
        numbers = {"seconds": moved.seconds, "lost_frames": moved.lost_frames}
        log.info("moved", extra=about("session.moved", session=session_id, epoch=epoch, **numbers))

    def _ended(self, session_id: str, epoch: int, reason: str, level: int = logging.INFO, more: str = "") -> None:
        self.readings.count("prospect_sessions_ended_total", reason)
        fields = about("session.ended", session=session_id, epoch=epoch, reason=reason)
        log.log(level, "session %s ended (%s)%s", name_of(session_id), reason, more, extra=fields)
