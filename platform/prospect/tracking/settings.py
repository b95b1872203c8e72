"""Settings of tracking, and the URIs and names that follow from them. Imports no MLflow."""

import re
from pathlib import Path
from urllib.parse import quote, unquote

from pydantic import Field

from prospect.errors import ProspectError
from prospect.settings import Settings

NOTE = "mlflow.note.content"
"""MLflow's tag for what its page shows as a run's description."""
SQLITE = "sqlite:///"


class TrackingError(ProspectError):
    """The tracking server does not answer."""

    code = "tracking_unavailable"


class TrackingSettings(Settings):
    """Where runs and models are recorded."""

    uri: str | None = None
    """MLflow tracking URI; set it where several machines record runs. Default: MLFLOW_TRACKING_URI, else an SQLite file
    under storage.root."""
    experiment: str = Field(default="prospect", min_length=1)
    """MLflow experiment that holds the runs; another one keeps trials apart, and is created at its first run."""


def database_uri(root: Path) -> str:
    """The SQLite database of the runs below a storage root.

    A `?` begins options in a URI, and a `%` with two hex digits stands for a character: those are encoded.
    """
    path = re.sub(r"\?|%(?=[0-9A-Fa-f]{2})", lambda found: quote(found[0]), str(root.absolute() / "mlflow.db"))
    return f"{SQLITE}{path}"


def database_file(uri: str) -> Path | None:
    """The file of an SQLite database, None of a server or of a database in memory."""
    path = unquote(uri.removeprefix(SQLITE).partition("?")[0])
    return Path(path) if uri.startswith(SQLITE) and path not in ("", ":memory:") else None
