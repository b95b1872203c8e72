"""How much a key may send: token buckets that are filled at the rate of the setting."""

import time
from collections.abc import Callable, Iterable

from prospect.errors import SessionError, session_error
from prospect.serving.session_ids import key_of
from prospect.serving.settings import KeySettings

BURST_S = 10.0
"""Seconds of its rate that a key may send at once after a pause: a client that comes back sends what it has kept."""


class TokenBucket:
    """Lets through what it has tokens for, and a last message that takes it into debt, however large.

    Over any time of t seconds, that is at most `capacity + rate * t` and one message.

    Args:
        rate: tokens a second.
        capacity: tokens at the start, and at most.
        now: a clock, seconds.
    """

    def __init__(self, rate: float, capacity: float, now: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._capacity, self._now = rate, capacity, now
        self._level, self._filled_at = capacity, now()

    def wait(self) -> float:
        """Seconds until something may pass; 0: now."""
        now = self._now()
        self._level = min(self._capacity, self._level + (now - self._filled_at) * self._rate)
        self._filled_at = now
        return 0.0 if self._level > 0 else max(-self._level / self._rate, 1e-3)

    def take(self, tokens: float) -> None:
        """Take tokens, whether there are enough or not."""
        self._level -= tokens


def check_num_sessions(session_ids: Iterable[str], key_id: str | None, at_most: int | None) -> None:
    """Check that a key may open another session beside those that it has among these.

    Raises:
        SessionError: `too_many_sessions`.
    """
    if key_id is not None and at_most is not None and sum(key_of(each) == key_id for each in session_ids) >= at_most:
        raise too_many_sessions(at_most)


def too_many_sessions(at_most: int) -> SessionError:
    """Make the error for a key that has as many sessions as it may."""
    message = f"session_id: {at_most} sessions of this key are open, and it may have no more; close one"
    return session_error("too_many_sessions", message, "session_id")


class KeyLimits:
    """What one key may send to this gateway.

    Args:
        settings: of all keys.
        now: a clock, seconds.
    """

    def __init__(self, settings: KeySettings, now: Callable[[], float] = time.monotonic) -> None:
        rates = (settings.max_messages_per_s, settings.max_bytes_per_s)
        self._messages, self._bytes = (
            None if rate is None else TokenBucket(rate, rate * BURST_S, now) for rate in rates
        )

    def spend(self, messages: int, num_bytes: int) -> float:
        """Count messages and bytes, unless there were too many before.

        Returns:
            Seconds until the key may send again; 0: these are counted, and taken.
        """
        buckets = [(self._messages, messages), (self._bytes, num_bytes)]
        wait = max((bucket.wait() for bucket, _ in buckets if bucket is not None), default=0.0)
        if not wait:
            self.charge(messages, num_bytes)
        return wait

    def charge(self, messages: int, num_bytes: int) -> None:
        """Count what was taken already: it delays what comes next."""
        for bucket, tokens in ((self._messages, messages), (self._bytes, num_bytes)):
            if bucket is not None:
                bucket.take(tokens)
