"""An unfinished run of an earlier tree goes on, and its finished model is scored as it was; see tests/fixtures."""

import json
from pathlib import Path

import pytest

from prospect.cluster.evaluate import evaluate_model
from prospect.cluster.stream_views import MODEL
from prospect.cluster.train import train
from prospect.model.saved import read_saved
from prospect.tracking.tracking import Tracking
from tests.earlier import PACKED, config_of, unpack

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("earlier") / "root")


def test_an_unfinished_run_goes_on_from_its_checkpoint_in_its_mlflow_run(local_ray: None, root: Path) -> None:
    begun = json.loads((root / "runs/unfinished/mlflow_run.json").read_text())["run_id"]
    lines: list[str] = []
    result = train(config_of(root, "unfinished"), lines.append)
    assert any("resumed at step 30 of 60" in line for line in lines), lines
    assert (result.steps, result.mlflow_run, result.version) == (60, begun, 2)
    assert read_saved(result.model).manifest["context"]["layout"] == 1, "a run keeps the defaults that it began with"
    client = Tracking(config_of(root).tracking, root).client
    history = client.get_metric_history(begun, "train/loss")
    assert [metric.step for metric in sorted(history, key=lambda m: m.timestamp)] == list(range(60))
    assert client.get_run(begun).info.status == "FINISHED"


def test_its_model_is_scored_as_it_was(local_ray: None, root: Path) -> None:
    config = config_of(root)
    evaluation = config.evaluation.model_copy(update={"model": "models:/prospect-dst/1"})
    result = evaluate_model(config.model_copy(update={"evaluation": evaluation}), lambda line: None)
    before = json.loads((PACKED / "evaluations/finished.json").read_text())
    assert result.scores.keys() == before["scores"].keys()
    for name in (MODEL, "oracle", "periodic"):
        found, then = result.scores[name].to_dict()["overall"]["metrics"], before["scores"][name]["overall"]["metrics"]
        for metric in ("turn_f1", "dst_f1", "joint_goal_accuracy", "readout_joint_goal_accuracy"):
            assert found[metric] == pytest.approx(then[metric], abs=0.02), (name, metric)
