"""The errors a user can cause. Each carries one sentence: the field, the value, and what to do.

Jobs print the sentence and exit with status 2; the server answers with `code` and a 4xx.
Anything that is not a `ProspectError` is a defect of ours and keeps its stack trace.
"""


class ProspectError(Exception):
    """A mistake in what somebody gave us.

    Attributes:
        code: stable identifier for clients, such as `wrong_shape`.
        field: the field at fault in the caller's own words, if there is one.
    """

    code = "invalid"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ConfigError(ProspectError):
    """An unknown key, a wrong value or a combination that cannot work."""

    code = "invalid_config"


class DataError(ProspectError):
    """A record, a video or a file that cannot be used; jobs quarantine it and go on."""

    code = "invalid_data"


class FingerprintError(ProspectError):
    """Embeddings of one encoder met a store, a model or a server of another encoder."""

    code = "fingerprint_mismatch"


class CheckpointError(ProspectError):
    """Weights that are missing, unreadable or do not fit."""

    code = "invalid_checkpoint"


class UntrainedHeadError(CheckpointError):
    """A decision head that was never trained was asked for a decision."""

    code = "untrained_head"


class DeviceError(ProspectError):
    """A GPU failed in the middle of the work; on a sound one the same work goes on."""

    code = "device_failed"


class SessionError(ProspectError):
    """A client's message that a live session cannot accept."""

    code = "invalid_message"
    retry_after: float | None = None
    """Seconds after which the same may be accepted; None: nobody knows, or never."""


class UnknownSessionError(SessionError):
    """An unknown session id: the session was closed, has expired or never existed."""

    code = "unknown_session"


class OutOfPagesError(SessionError):
    """The KV cache has no free page for a session's tokens."""

    code = "out_of_pages"


def session_error(code: str, message: str, field: str | None = None) -> SessionError:
    """Make a `SessionError` with a code of its own."""
    error = SessionError(message, field=field)
    error.code = code
    return error


def unknown_session(session_id: str) -> UnknownSessionError:
    """Make the error for a session that is not open where it is asked for."""
    return UnknownSessionError(f"session_id: no session {session_id!r} is open here", field="session_id")
