"""A model folder as a function of a table of frames: what `mlflow.pyfunc.load_model` loads. Knows no MLflow."""

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
"""A row is a frame: its features, I x D numbers of the encoder, and what the user said before it."""

OUTPUTS = (
    {"name": "frame", "type": "long", "required": True},
    {"name": "p_speak", "type": "double", "required": True},
    {"name": "p_update", "type": "double", "required": True},
    {"name": "utterance", "type": "string", "required": False},
    {"name": "state", "type": "array", "items": {"type": "string"}, "required": True},
)
"""A row is a frame's decision, with the state of each step after it."""

PARAMETERS = (
    {"name": "goal", "type": "string", "default": "", "shape": None},
    {"name": "steps", "type": "string", "default": [], "shape": [-1]},
    {"name": "knowledge", "type": "string", "default": "", "shape": None},
)
"""What the session is about."""


class TableModel:
    """Streams each table as a session of its own."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._context = ContextSettings.of_model(loaded.manifest.get("context", {}))
        self._settings = StreamingSettings(max_sessions=1, max_waiting_frames=10**9)
        self._loaded = loaded

    def predict(self, table: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """`INPUTS` and `PARAMETERS` to `OUTPUTS`.

        Raises:
            DataError: an embedding of another length than the model's I x D.
            UntrainedHeadError: steps are given and the model never learned to track them.
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
                f"embedding: row {index} has {len(numbers)} numbers, and the model takes "
                f"{config.tokens_per_frame} x {config.vision_dim}",
                field="embedding",
            )
        return numbers.reshape(config.tokens_per_frame, config.vision_dim)


def _load_pyfunc(folder: str) -> TableModel:
    """MLflow's name for what loads a model; raises CheckpointError and UntrainedHeadError as `load_model` does."""
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
