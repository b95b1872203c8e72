"""Calls to a server that may be away for a while."""

import time
from collections.abc import Callable
from typing import TypeVar

from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from prospect.errors import ProspectError

T = TypeVar("T")


class TrackingError(ProspectError):
    """The tracking server does not answer."""

    code = "tracking_unavailable"


def patiently(call: Callable[[], T], report: Callable[[str], None], seconds: float = 120) -> T:
    """The result of `call`, which is repeated for `seconds` while the server does not answer.

    Raises:
        TrackingError: it never did.
    """
    deadline, pause = time.monotonic() + seconds, 1.0
    while True:
        try:
            return call()
        except (MlflowException, SQLAlchemyError, OSError) as error:  # those of `requests` are OSErrors
            if isinstance(error, MlflowException) and error.error_code not in _AWAY:
                raise
            reason = str(error).strip().split("\n", 1)[0]
            if time.monotonic() + pause > deadline:
                raise TrackingError(
                    f"the tracking server did not answer for {seconds:.0f} s ({reason}); start the same run again when "
                    "it does: what is done stays done",
                    field="tracking.uri",
                ) from error
            if pause == 1.0:
                report(f"train  waiting for the tracking server: {reason}")
        time.sleep(pause)
        pause = min(2 * pause, 10.0)


_AWAY = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"}
"""What MLflow calls a connection that was refused or lost, a time-out and a server's own failure."""
