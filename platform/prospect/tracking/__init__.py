"""Runs, metrics and registered models. The only package that imports MLflow (DESIGN 4.10).

All calls go through `MlflowClient` with explicit run ids, so that nothing depends on MLflow's global state. With no
`uri` everything lies under the storage root: runs in `mlflow.db` (SQLite), artifacts in `mlartifacts/`.
"""

from prospect.tracking.interface import ModelInterface
from prospect.tracking.patience import TrackingError, patiently
from prospect.tracking.run import DatasetCard, Run
from prospect.tracking.server import CANDIDATE, CHAMPION, Tracking, TrackingSettings

__all__ = [
    "CANDIDATE",
    "CHAMPION",
    "DatasetCard",
    "ModelInterface",
    "Run",
    "Tracking",
    "TrackingError",
    "TrackingSettings",
    "patiently",
]
