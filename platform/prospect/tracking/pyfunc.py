"""Signature of a registered model, in MLflow's notation."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.models import Model, ModelSignature
from mlflow.types import ParamSchema, Schema


@dataclass(frozen=True)
class ModelInterface:
    """Inputs, outputs and parameters of a model, and its loader for `mlflow.pyfunc`.

    Attributes:
        loader: module with `_load_pyfunc(folder)`, whose result has `predict(table, params)`.
        inputs, outputs, parameters: columns in the notation of MLflow's signatures.
    """

    loader: str
    inputs: Sequence[Mapping[str, Any]]
    outputs: Sequence[Mapping[str, Any]]
    parameters: Sequence[Mapping[str, Any]] = ()

    def write(self, folder: Path, run_id: str, model_id: str) -> None:
        """Write `MLmodel`, which makes a folder an MLflow model."""
        columns = (json.dumps([*columns]) for columns in (self.inputs, self.outputs, self.parameters))
        inputs, outputs, parameters = columns
        signature = ModelSignature(
            Schema.from_json(inputs), Schema.from_json(outputs), ParamSchema.from_json(parameters)
        )
        python = ".".join(map(str, sys.version_info[:3]))
        flavors = {"python_function": {"loader_module": self.loader, "python_version": python}}
        model = Model(run_id=run_id, flavors=flavors, signature=signature, model_id=model_id)
        model.save(str(folder / "MLmodel"))
