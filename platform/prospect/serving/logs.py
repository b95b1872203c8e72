"""What the served application writes down: one JSON object a line, with names and numbers only.

A line has `time`, `level`, `event`, and `session`, `frame`, `epoch` and other numbers where they are known; never a
text, a picture, a key or a handle. Arguments of messages may hold such things and stay out of it: they are on standard
error, from WARNING on.
"""

import json
import logging
import traceback
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from prospect.serving.session_ids import name_of

MOST_BYTES, KEPT = 20 * 2**20, 5
"""Of a file before the next one begins, and how many are kept."""
OURS = "prospect"
"""Logger of the package."""


def about(name: str, **fields: Any) -> dict[str, Any]:
    """The argument `extra` of a logging call: what happened, and its names and numbers; None: not known.

    A `session` is named as its client knows it.
    """
    known = {key: value for key, value in fields.items() if value is not None}
    if "session" in known:
        known["session"] = name_of(known["session"])
    return {"event": name, "fields": known}


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON.

    Args:
        process: what writes, such as `gateway`.
    """

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; of an exception, its class and where it was raised, not its message."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", record.name.removeprefix(f"{OURS}.")),
            **getattr(record, "fields", {}),
            "process": self._process,
            "pid": record.process,
        }
        if not hasattr(record, "event"):
            line["message"] = str(record.msg)
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            line["stack"] = [
                f"{Path(each.filename).name}:{each.lineno} {each.name}"
                for each in traceback.extract_tb(record.exc_info[2])
            ]
        return json.dumps(line)


def write_logs(process: str, name: str, folder: Path | None) -> None:
    """Have the package's loggers write lines of JSON, and warnings as text to standard error; once in a process.

    Args:
        process: what writes.
        name: of the file.
        folder: of the file; None: no file.
    """
    logger = logging.getLogger(OURS)
    logger.setLevel(logging.INFO)
    spoken = logging.StreamHandler()
    spoken.setLevel(logging.WARNING)
    logger.addHandler(spoken)
    if folder is not None:
        file = RotatingFileHandler(folder / name, maxBytes=MOST_BYTES, backupCount=KEPT, encoding="utf-8")
        file.setFormatter(JsonLines(process))
        logger.addHandler(file)
