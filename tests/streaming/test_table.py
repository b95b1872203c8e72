"""A model folder as a function of a table of frames: the rows are what a live session decides."""

from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import torch

from prospect.errors import DataError
from prospect.evaluation.stream import stream_dialogues
from prospect.model.checkpoint import load_model, save_model
from prospect.model.settings import ModelSettings
from prospect.streaming import table
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.settings import DstDecoder, StreamingSettings
from prospect.tracking.pyfunc import ModelInterface
from tests.factories import CONTEXT, DIM, features, timeline_of, tiny_model, tiny_vocabulary, toy_dialogue


@pytest.fixture(autouse=True)
def away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """MLflow makes its database where it is told to, and else where the tests are started."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


def test_a_folder_loads_by_its_signature_and_streams_a_table(tmp_path: Path) -> None:
    loaded = tiny_model(tiny_vocabulary())
    save_model(loaded.model, loaded.vocabulary.tokenizer, ModelSettings(), tmp_path / "model")
    interface = ModelInterface(
        "prospect.streaming.table", table.INPUTS, table.OUTPUTS, table.PARAMETERS, table.PACKAGES
    )
    interface.write(tmp_path / "model", "run", "m-1")
    required = (tmp_path / "model" / "requirements.txt").read_text().splitlines()
    assert f"torch=={torch.__version__.partition('+')[0]}" in required
    assert required[0].startswith("# and prospect ")
    assert mlflow.pyfunc.get_model_dependencies(str(tmp_path / "model"), format="pip").endswith("requirements.txt")
    modes = {file.stat().st_mode & 0o444 for file in (tmp_path / "model").iterdir()}
    assert modes == {0o444}, "readable by others, as umask says"
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


@pytest.mark.parametrize("decoder", ["generate", "readout"])
def test_it_decides_what_an_evaluation_decides(decoder: DstDecoder, tmp_path: Path) -> None:
    """The engine's settings of the training travel with the model: where a delta comes from, and the thresholds."""
    loaded, dialogue = tiny_model(tiny_vocabulary()), toy_dialogue(3)
    settings = StreamingSettings(dst_decoder=decoder, speak_threshold=0.4, update_threshold=0.1)
    manifest = {"context": CONTEXT.model_dump(mode="json"), "streaming": settings.decisive()}
    save_model(loaded.model, loaded.vocabulary.tokenizer, ModelSettings(), tmp_path / "model", manifest)
    saved = load_model(tmp_path / "model")
    placed = dialogue.model_copy(update={"turns": ()}), timeline_of(dialogue.model_copy(update={"turns": ()}))
    engine = StreamingEngine(saved, CONTEXT, settings)
    [evaluated] = stream_dialogues(engine, [placed], lambda d, start, stop: features(d.video_id, start, stop))

    frames = features(dialogue.video_id, 0, placed[1].num_frames)
    told = {"goal": dialogue.goal, "steps": list(dialogue.step_names), "knowledge": dialogue.knowledge}
    rows = table.TableModel(saved).predict(pd.DataFrame({"embedding": list(frames.reshape(len(frames), -1))}), told)
    for decision, (_, row) in zip(evaluated.decisions, rows.iterrows(), strict=True):
        assert row["state"] == [step.label for step in decision.state.steps]
        assert (row["utterance"] if isinstance(row["utterance"], str) else None) == decision.utterance
        assert row["p_speak"] == pytest.approx(decision.p_speak, abs=1e-6)
    assert {step for state in rows["state"] for step in state} > {"not_started"} or decoder == "generate"
