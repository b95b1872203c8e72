"""Signature and environment of a registered model, in MLflow's notation."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from mlflow.models import Model, ModelSignature
from mlflow.types import ParamSchema, Schema

_ENVIRONMENT, _REQUIREMENTS = "python_env.yaml", "requirements.txt"


@dataclass(frozen=True)
class ModelInterface:
    """Inputs, outputs and parameters of a model, and its loader for `mlflow.pyfunc`.

    Attributes:
        loader: module with `_load_pyfunc(folder)`, whose result has `predict(table, params)`.
        inputs, outputs, parameters: columns in the notation of MLflow's signatures.
        packages: that the loader imports; their installed versions are written down.
    """

    loader: str
    inputs: Sequence[Mapping[str, Any]]
    outputs: Sequence[Mapping[str, Any]]
    parameters: Sequence[Mapping[str, Any]] = ()
    packages: Sequence[str] = ()

    def write(self, folder: Path, run_id: str, model_id: str) -> None:
        """Write `MLmodel`, which makes a folder an MLflow model, and the environment that it needs."""
        columns = (json.dumps([*columns]) for columns in (self.inputs, self.outputs, self.parameters))
        inputs, outputs, parameters = columns
        signature = ModelSignature(
            Schema.from_json(inputs), Schema.from_json(outputs), ParamSchema.from_json(parameters)
        )
        python = ".".join(map(str, sys.version_info[:3]))
        environment = {"env": {"virtualenv": _ENVIRONMENT}}
        flavors = {"python_function": {"loader_module": self.loader, "python_version": python, **environment}}
        (folder / _ENVIRONMENT).write_text(
            f"python: {python}\nbuild_dependencies: [pip, setuptools]\ndependencies: [-r {_REQUIREMENTS}]\n"
        )
        (folder / _REQUIREMENTS).write_text("".join(f"{line}\n" for line in self._requirements()))
        model = Model(run_id=run_id, flavors=flavors, signature=signature, model_id=model_id)
        model.save(str(folder / "MLmodel"))

    def _requirements(self) -> Iterator[str]:
        """The loader's own package by name, which no index has, and the others by version."""
        own = self.loader.partition(".")[0]
        yield f"# and {own} {metadata.version(own)}, installed from its repository or its wheel"
        yield from (f"{name}=={metadata.version(name).partition('+')[0]}" for name in sorted(self.packages))
