"""A model folder as a function from a table of frames to a table of decisions, for `mlflow.pyfunc.load_model`.

Imports no MLflow. Registered models name this module as their loader.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from prospect.dialogue.prompt import ContextSettings
from prospect.errors import DataError
from prospect.model.checkpoint import LoadedModel, load_model
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.settings import StreamingSettings
from prospect.streaming.types import Decision, Failed, SessionSpec

INPUTS = (
    {"name": "embedding", "type": "array", "items": {"type": "double"}, "required": True},
    {"name": "text", "type": "string", "required": False},
)
"""Columns of the input; a row is a frame: its I x D features, and what the user said before it."""

OUTPUTS = (
    {"name": "frame", "type": "long", "required": True},
    {"name": "p_speak", "type": "double", "required": True},
    {"name": "p_update", "type": "double", "required": True},
    {"name": "utterance", "type": "string", "required": False},
    {"name": "state", "type": "array", "items": {"type": "string"}, "required": True},
)
"""Columns of the output; a row is a frame's decision, with the state of each step after it."""

PARAMETERS = (
    {"name": "goal", "type": "string", "default": "", "shape": None},
    {"name": "steps", "type": "string", "default": [], "shape": [-1]},
    {"name": "knowledge", "type": "string", "default": "", "shape": None},
)
"""Parameters of a session."""

PACKAGES = ("jinja2", "numpy", "pandas", "peft", "pydantic", "safetensors", "tokenizers", "torch", "transformers")
"""What loading and streaming import."""


class TableModel:
    """Streams each table as a session of its own."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._context = ContextSettings.of_model(loaded.manifest.get("context", {}))
        trained = {"max_sessions": 1, "max_waiting_frames": 10**9, **loaded.manifest.get("streaming", {})}
        self._settings = StreamingSettings(**trained)
        self._loaded = loaded

    def predict(self, table: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Stream a table of `INPUTS` with `PARAMETERS`; return a table of `OUTPUTS`.

        Raises:
            DataError: an embedding does not have the model's I x D numbers.
            UntrainedHeadError: steps are given, and the heads that track them are untrained.
        """
        engine = StreamingEngine(self._loaded, self._context, self._settings)
        given = dict(params or {})
        spec = SessionSpec(
            goal=given.get("goal", ""), steps=tuple(given.get("steps", ())), knowledge=given.get("knowledge", "")
        )
        engine.open("table", spec)
        texts = table["text"] if "text" in table else [None] * len(table)
        for index, (embedding, text) in enumerate(zip(table["embedding"], texts, strict=True)):
            if isinstance(text, str) and text:
                engine.push_text("table", text)
            engine.push_frame("table", self._frame(index, embedding))
        rows = [_row(decision) for decision in _decisions(engine)]
        return pd.DataFrame(rows, columns=[column["name"] for column in OUTPUTS])

    def _frame(self, index: int, embedding: Any) -> np.ndarray:
        config = self._loaded.model.config
        numbers = np.asarray(embedding, np.float16).reshape(-1)
        if len(numbers) != config.tokens_per_frame * config.vision_dim:
            raise DataError(
                f"embedding: row {index} has {len(numbers)} numbers, the model expects "
                f"{config.tokens_per_frame} x {config.vision_dim}",
                field="embedding",
            )
        return numbers.reshape(config.tokens_per_frame, config.vision_dim)


def _load_pyfunc(folder: str) -> TableModel:
    """Load a model folder; MLflow calls it by this name.

    Raises:
        CheckpointError: the folder holds no usable model.
        UntrainedHeadError: a decision head was never trained.
    """
    return TableModel(load_model(folder))


def _decisions(engine: StreamingEngine) -> list[Decision]:
    decisions = []
    while engine.has_work():
        for _, event in engine.step():
            if isinstance(event, Failed):
                raise RuntimeError(event.reason)
            if isinstance(event, Decision):
                decisions.append(event)
    return decisions


def _row(decision: Decision) -> tuple[int, float, float, str | None, list[str]]:
    state = [step.label for step in decision.state.steps]
    return decision.frame, decision.p_speak, decision.p_update, decision.utterance, state
