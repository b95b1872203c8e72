"""Retry calls while a tracking server is unavailable."""

import time
from collections.abc import Callable
from typing import TypeVar

from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from prospect.messages import first_line
from prospect.tracking.settings import TrackingError

T = TypeVar("T")


def retry_until_available(call: Callable[[], T], report: Callable[[str], None], seconds: float = 120) -> T:
    """Return the result of `call`, repeated for up to `seconds` while the server does not answer.

    Raises:
        TrackingError: the server did not answer in that time.
    """
    deadline, pause = time.monotonic() + seconds, 1.0
    while True:
        try:
            return call()
        except Exception as error:
            if not is_away(error):
                raise
            reason = first_line(error)
            if time.monotonic() + pause > deadline:
                raise TrackingError(
                    f"the tracking server did not answer for {seconds:.0f} s ({reason}); start the same run again "
                    "later: it continues",
                    field="tracking.uri",
                ) from error
            if pause == 1.0:
                report(f"train  waiting for the tracking server: {reason}")
        time.sleep(pause)
        pause = min(2 * pause, 10.0)


def is_away(error: Exception) -> bool:
    """Whether the same call may succeed later."""
    if isinstance(error, MlflowException):
        return error.error_code in _AWAY
    return isinstance(error, TrackingError | SQLAlchemyError | OSError)  # those of `requests` are OSErrors


_AWAY = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"}
"""MLflow's codes of a refused or lost connection, a time-out and a server's failure."""
