"""Where runs are recorded, and what it means that a server is away. Imports no MLflow."""

from pydantic import Field

from prospect.errors import ProspectError
from prospect.settings import Settings


class TrackingError(ProspectError):
    """The tracking server does not answer."""

    code = "tracking_unavailable"


class TrackingSettings(Settings):
    """Where runs and models are recorded."""

    uri: str | None = None
    """MLflow tracking URI; default: MLFLOW_TRACKING_URI, else an SQLite file under storage.root."""
    experiment: str = Field(default="prospect", min_length=1)
