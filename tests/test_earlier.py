"""What an earlier tree wrote is read, loaded and served by this one (tests/fixtures/README.md)."""

import asyncio
import json
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import torch

from prospect.cluster import stream_views
from prospect.cluster.train import train
from prospect.data.embeddings import EmbeddingStore
from prospect.data.prepare import read_records
from prospect.errors import ConfigError
from prospect.evaluation import group_streamer
from prospect.evaluation.decision_cache import StreamedModel
from prospect.model import checkpoint
from prospect.model.checkpoint import load_model
from prospect.model.saved import read_saved
from prospect.protocol.messages import EmbeddingMessage, FrameAppend, FrameOutcome, SessionUpdate
from prospect.serving import deployments
from prospect.serving.config import ServeConfig
from prospect.serving.deployments import Encoder, Engine, Site
from prospect.serving.host import SessionHost
from prospect.serving.local import LocalEngines
from prospect.serving.served_model import pin_model
from prospect.serving.settings import ServingSettings
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.settings import StreamingSettings
from prospect.streaming.types import Decision
from prospect.tracking.tracking import Tracking
from prospect.vision import encoder, encoding
from prospect.vision.fingerprint import encoder_fingerprint
from prospect.vision.settings import VisionSettings
from tests.earlier import config_of, unpack
from tests.factories import TOY_CONTEXT, features, toy_dialogue


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("earlier") / "root")


def test_its_embedding_store_is_read(root: Path) -> None:
    store = EmbeddingStore(root / "embeddings")
    assert sorted(store.video_ids()) == [f"v{number}" for number in range(8)]
    assert (store.dim, store.tokens_per_frame) == (8, 1)
    for video in store.video_ids():
        length = store.num_frames(video)
        np.testing.assert_array_equal(store.read(video, 2, length), features(video, 2, length))
        assert store.has(video, "none", store.fingerprint)


def test_its_labels_are_those_of_its_records(root: Path) -> None:
    records = read_records(config_of(root).data, root / "labels/dialogues.jsonl", EmbeddingStore(root / "embeddings"))
    assert not records.quarantined
    identity = json.loads((root / "runs/finished/identity.json").read_text())
    assert records.fingerprint == identity["data"]["records"], "the same records have the same fingerprint for ever"
    assert {d.video_id: [s.start for s in d.steps] for d, _ in records.placed} == {
        f"v{number}": [step.start for step in toy_dialogue(number).steps] for number in range(8)
    }
    assert [d.video_id for d, _ in records.scored("test")] == ["v7"]


def test_its_finished_run_is_finished_and_belongs_to_its_configuration(root: Path) -> None:
    config = config_of(root)
    result = train(config, lambda line: None)
    assert (result.reused, result.steps, result.name, result.version) == (True, 60, "prospect-dst", 1)
    assert result.validation["loss"] > 0
    changed = config.model_copy(update={"training": config.training.model_copy(update={"learning_rate": 1e-3})})
    with pytest.raises(ConfigError, match=r"training.learning_rate=0.01 and not 0.001"):
        train(changed, lambda line: None)
    other = config.model_copy(update={"context": config.context.model_copy(update={"layout": 2})})
    with pytest.raises(ConfigError, match=r"started with context.layout=1 and not 2"):
        train(other, lambda line: None)


def test_its_registered_model_loads_with_its_thresholds(root: Path) -> None:
    folder = Tracking(config_of(root).tracking, root).resolve("models:/prospect-dst@champion")
    loaded, saved = load_model(folder), read_saved(folder)
    assert loaded.fingerprint == saved.fingerprint == EmbeddingStore(root / "embeddings").fingerprint
    assert loaded.model.config.thresholds == saved.thresholds
    assert saved.thresholds["toy"].keys() == {"speak", "update"}
    assert loaded.model.config.trained_steps == {"speaking": 60, "dst_update": 60, "dst_state": 60}
    assert loaded.manifest["run_name"] == "finished"


def test_mlflow_loads_its_registered_model(root: Path) -> None:
    folder = Tracking(config_of(root).tracking, root).resolve("models:/prospect-dst/1")
    table = pd.DataFrame({"embedding": [row[0].tolist() for row in features("v7", 0, 6)]})
    told = mlflow.pyfunc.load_model(str(folder)).predict(table, params={"goal": "make tea", "steps": ["boil", "pour"]})
    assert list(told["frame"]) == list(range(6))
    assert told["p_speak"].between(0, 1).all()


def test_an_exported_session_goes_on_as_it_would_have(root: Path) -> None:
    loaded = load_model(root / "runs/finished/model")
    settings = StreamingSettings(dst_decoder="readout", deterministic=True, max_sessions=2)
    engine = StreamingEngine(loaded, TOY_CONTEXT, settings)
    assert engine.import_(json.loads((root / "session.json").read_text())) == "kitchen"
    found: list[Decision] = []
    for frame in range(12, 24):
        engine.push_frame("kitchen", features("v7", frame, frame + 1)[0])
        while engine.has_work():
            found += [event for _, event in engine.step() if isinstance(event, Decision)]
    expected = [event for event in json.loads((root / "session_after.json").read_text()) if event["type"] == "Decision"]
    assert [decision.frame for decision in found] == [event["frame"] for event in expected]
    for decision, event in zip(found, expected, strict=True):
        assert (decision.p_speak, decision.p_update) == pytest.approx((event["p_speak"], event["p_update"]), abs=1e-3)
        assert decision.utterance == event["utterance"]
        assert [int(step) for step in decision.state.steps] == event["state"]["steps"]


@pytest.fixture
def without_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a replica tells its operator goes by Serve."""
    monkeypatch.setattr(deployments, "observe_replica", lambda measured, **facts: measured)


async def served(root: Path) -> list[FrameOutcome]:
    """What a session of two frames is answered by a replica that serves the champion."""
    worker = Engine(site_of(root)).worker
    host = SessionHost(LocalEngines([worker], "secret"), "secret")
    card = await host.model()
    await host.create(SessionUpdate(session_id="s", goal="make tea", steps=("boil water", "pour it")), False)
    rows = [EmbeddingMessage.of(row, card.fingerprint) for row in features("v7", 0, 2)]
    outcomes = await host.decide("s", [FrameAppend(seq=seq, embedding=row) for seq, row in enumerate(rows)])
    await host.close("s")
    await host.stop()
    await worker.stop()
    return outcomes


def site_of(root: Path) -> Site:
    return Site(ServeConfig(**dict(config_of(root))), "secret", alone=True, bound="127.0.0.1", needs_key=False)


@pytest.mark.usefixtures("without_serve")
def test_its_registered_model_is_served(root: Path) -> None:
    outcomes = asyncio.run(served(root))
    assert [(outcome.seq, outcome.frame) for outcome in outcomes] == [(0, 0), (1, 1)]
    for outcome in outcomes:
        assert list(outcome.state) == ["S1", "S2"]
        assert 0 < outcome.p_speak < 1


def test_an_engine_that_starts_after_the_alias_has_moved_serves_the_same_version(root: Path) -> None:
    config = ServeConfig(**dict(config_of(root)), serving=ServingSettings(model="models:/prospect-dst@champion"))
    assert pin_model(config).serving.model == "models:/prospect-dst/1"
    folder = config.model_copy(update={"serving": ServingSettings(model=str(root))})
    assert pin_model(folder) == folder


@pytest.mark.usefixtures("without_serve")
def test_every_way_to_load_it_asks_for_the_device_of_its_process(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU a served model and one on a GPU look alike, so that what is asked for is what is held."""
    asked: list[str] = []
    for module in (checkpoint, encoder):
        monkeypatch.setattr(module, "pick_device", lambda wanted: asked.append(wanted) or torch.device("cpu"))
    folder = root / "runs/finished/model"
    mlflow.pyfunc.load_model(str(folder))
    load_model(folder)
    assert asked == ["auto"] * 2
    asked.clear()
    for module in (deployments, stream_views):
        monkeypatch.setattr(module, "reserved_device", lambda: "cuda")
    model = StreamedModel(folder, root / "cache", str(root / "embeddings"), TOY_CONTEXT, StreamingSettings())
    tiny = VisionSettings(model="prospect-tiny", weights="random:0", image_size=64)
    Engine(site_of(root))
    Encoder(site_of(root))
    stream_views._StreamerActor(model)
    assert callable(encoding.EncodeBatch(tiny, encoder_fingerprint(tiny), 1, lambda: "cuda")._encode)
    assert asked == ["cuda"] * 4  # the served model and its encoder


def test_an_evaluations_worker_keeps_its_engine(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new one measures attention, compiles and captures graphs; what it decides is the same."""
    made: list[StreamingEngine] = []

    class Counted(StreamingEngine):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(group_streamer, "StreamingEngine", Counted)
    folder = root / "runs/finished/model"
    model = StreamedModel(folder, root / "cache", str(root / "embeddings"), TOY_CONTEXT, StreamingSettings())
    dialogues = json.dumps([toy_dialogue(number).model_dump_json() for number in (6, 7)])
    rows = [
        {"key": view, "view": view, "speak": "", "update": "", "dialogues": dialogues}
        for view in ("watched", "blank", "watched")
    ]
    streamer = group_streamer.GroupStreamer(model)
    first, _, again = (streamer(row)["decisions"] for row in rows)
    assert first == again
    assert len(made) == 1
    assert made[0].session_ids == []
    broken = toy_dialogue(6).model_copy(update={"goal": "tea " * 2000})
    together = [toy_dialogue(7).model_dump_json(), broken.model_dump_json()]
    failed = streamer({**rows[0], "dialogues": json.dumps(together)})
    assert "goal" in failed["error"] or "context" in failed["error"]
    assert made[0].session_ids == [], "sessions of a group that failed are closed"
    assert streamer(rows[0])["decisions"] == first
