"""Who sent a request."""

import re
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from prospect.errors import unknown_session
from prospect.protocol.messages import SESSION_ID
from prospect.serving.access.limits import KeyLimits
from prospect.serving.session_ids import scoped

CALLER = "prospect.caller"
"""Where a request's ASGI scope says who asks: this server's own word, which no header can say."""
_NAME = re.compile(SESSION_ID)


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        key_id: of the API key; None where keys are off, and for sessions of that time.
        limits: what the key may use; None: anything, or it was counted by the gateway that took the request.
    """

    key_id: str | None = None
    limits: KeyLimits | None = field(default=None, compare=False)

    def session(self, name: str) -> str:
        """The id inside the server of the caller's session of a name.

        Raises:
            UnknownSessionError: no session can have that name.
        """
        if not _NAME.fullmatch(name):
            raise unknown_session(name)
        return scoped(self.key_id, name)

    def charge(self, messages: int, num_bytes: int) -> None:
        """Count what was taken already."""
        if self.limits is not None:
            self.limits.charge(messages, num_bytes)

    def spend(self, messages: int, num_bytes: int) -> float:
        """Count what was sent; returns the seconds to wait for before more is taken, 0 where this is taken."""
        return 0.0 if self.limits is None else self.limits.spend(messages, num_bytes)


def caller_of(connection: HTTPConnection) -> Caller:
    """Who sent a request."""
    caller: Caller = connection.scope[CALLER]
    return caller


Asking = Annotated[Caller, Depends(caller_of)]
"""Parameter of an operation: who asks."""


def _session(session_id: str, caller: Asking) -> str:
    return caller.session(session_id)


Session = Annotated[str, Depends(_session)]
"""Parameter of an operation: the id inside the server of the session in its path."""
