"""A model folder as a function of a table of frames: the rows are what a live session decides."""

from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest

from prospect.errors import DataError
from prospect.model.checkpoint import save_model
from prospect.model.settings import ModelSettings
from prospect.streaming import table
from prospect.tracking.pyfunc import ModelInterface
from tests.factories import DIM, features, tiny_model, tiny_vocabulary


@pytest.fixture(autouse=True)
def away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """MLflow makes its database where it is told to, and else where the tests are started."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


def test_a_folder_loads_by_its_signature_and_streams_a_table(tmp_path: Path) -> None:
    loaded = tiny_model(tiny_vocabulary())
    save_model(loaded.model, loaded.vocabulary.tokenizer, ModelSettings(), tmp_path / "model")
    interface = ModelInterface("prospect.streaming.table", table.INPUTS, table.OUTPUTS, table.PARAMETERS)
    interface.write(tmp_path / "model", "run", "m-1")
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))

    frames = pd.DataFrame({"embedding": list(features("v", 0, 6).reshape(6, -1).astype(np.float64))})
    frames["text"] = ["Hello", *[None] * 5]
    rows = model.predict(frames, params={"goal": "Make tea", "steps": ["boil water", "pour it"]})
    assert [*rows.columns] == [column["name"] for column in table.OUTPUTS]
    assert [*rows["frame"]] == [*range(6)]
    assert rows["p_speak"].between(0, 1).all()
    assert rows["state"].map(len).eq(2).all()
    silent = model.predict(frames[["embedding"]], params={"goal": "Make tea"})
    assert silent["state"].map(len).eq(0).all()
    assert silent["p_speak"][0] != rows["p_speak"][0], "what was said and the recipe count"

    with pytest.raises(DataError, match=rf"row 0 has 3 numbers, the model expects 1 x {DIM}"):
        model.predict(pd.DataFrame({"embedding": [[1.0, 2.0, 3.0]]}))
