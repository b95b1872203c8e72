"""The result of a finished run, `result.json`."""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainResult:
    """Losses, scores and the registered model of a finished run."""

    run_name: str
    model: Path
    """The model's folder."""
    steps: int
    model_step: int
    """Step of the model's weights: the best validation's with early stopping, else the last."""
    first_loss: float
    last_loss: float
    validation: dict[str, float]
    """Losses and scores of the model's weights; empty without a validation split."""
    trained_steps: dict[str, int]
    """Optimizer steps up to the model's in which each head had labels."""
    mlflow_run: str
    name: str
    version: int
    """Registered as `models:/NAME/VERSION`, alias `candidate`."""
    quarantined: int
    """Records and events that were left out."""
    reused: bool = False
    """Whether the run was finished before, so that nothing was computed."""


def read_result(folder: Path) -> TrainResult | None:
    """The result of the run in `folder`; None where the run is not finished."""
    file = folder / "result.json"
    if not file.is_file() or not (folder / "model").is_dir():
        return None
    values = json.loads(file.read_text())
    return TrainResult(**{"model_step": values["steps"], **values, "model": Path(values["model"]), "reused": True})
