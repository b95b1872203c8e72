"""One evaluation is one result, which says what it is of; see tests/fixtures for the model."""

import json
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prospect.cluster.evaluate import evaluate_model
from prospect.cluster.evaluation_result import EvaluationResult
from prospect.cluster.stream_views import MODEL
from prospect.config.schema import Config
from prospect.errors import DataError, FingerprintError
from prospect.evaluation.lineage import TRAINED_ON
from prospect.evaluation.settings import PacedSettings
from prospect.tracking.tracking import Tracking
from prospect.vision.settings import VisionSettings
from tests.e2e.training_runs import wait_for
from tests.earlier import config_of, unpack

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("evaluated") / "root")


def says_trained_on(root: Path, videos: list[str]) -> None:
    file = root / "runs/finished/model/prospect.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), TRAINED_ON: videos}))


def evaluated(root: Path, **changes: Any) -> tuple[EvaluationResult, list[str]]:
    config: Config = config_of(root)
    changed = config.evaluation.model_copy(update={"model": f"{root}/runs/finished/model", **changes})
    lines: list[str] = []
    return evaluate_model(config.model_copy(update={"evaluation": changed}), lines.append), lines


def test_each_evaluation_has_a_file_and_an_mlflow_run_below_the_trainings(local_ray: None, root: Path) -> None:
    says_trained_on(root, ["toy/v0", "toy/v6"])
    first, lines = evaluated(root)
    assert [*first.lineage.marks()] == []
    assert any("streaming 1 dialogue of 1 video," in line for line in lines)
    assert "eval   streaming with CpuAttention on cpu" in lines, "what decides, and where"
    looser, _ = evaluated(root, similarity_threshold=0.9)
    again, lines = evaluated(root)
    assert first.file == again.file != looser.file
    assert not any("streamed" in line for line in lines), "decisions are kept"
    assert sorted(path.name for path in (root / "evaluations/finished").glob("*.json")) == sorted(
        [first.file.name, looser.file.name]
    )
    told = json.loads(first.file.read_text())["lineage"]
    assert (told["split"], told["videos"], told["seen"]) == ("test", 1, [])
    assert told["rules"]["evaluation"]["similarity_threshold"] == 0.5

    tracking = Tracking(config_of(root).tracking, root)
    training = first.manifest["mlflow_run"]
    parent = tracking.client.get_run(training)
    runs = tracking.client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{training}' and tags.`prospect.job` = 'eval'"
    )
    assert {run.data.params["evaluation.similarity_threshold"] for run in runs} == {"0.5", "0.9"}
    assert len(runs) == 2
    score = first.scores["trained model"].overall["turn_f1"]
    assert parent.data.metrics["eval/turn_f1"] == pytest.approx(score)
    assert all(run.data.tags["mlflow.note.content"].startswith(first.lineage.model) for run in runs)


JOB = """
import pickle, ray, sys
from prospect.cluster.evaluate import evaluate_model
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
with open(sys.argv[1], "rb") as config:
    evaluate_model(pickle.load(config))
"""


@pytest.mark.long
def test_a_killed_evaluation_goes_on_and_streams_nothing_twice(local_ray: None, root: Path, tmp_path: Path) -> None:
    """Six dialogues in nine ways; the quick test of the same is in tests/evaluation/test_decision_cache.py."""
    says_trained_on(root, [])
    config, kept = config_of(root), root / "cache" / "decisions"
    more = {
        "model": f"{root}/runs/finished/model", "split": "train", "also": ("untracked", "told"), "sweep": (0.25, 0.75),
    }  # fmt: skip
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update=more)})
    before = {*kept.glob("*.json")} if kept.is_dir() else set()
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(config))
    driver = subprocess.Popen([sys.executable, "-c", JOB, str(tmp_path / "config.pickle")])
    try:
        wait_for(lambda: len({*kept.glob("*.json")} - before) >= 2)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    finished = {file: file.stat().st_mtime_ns for file in {*kept.glob("*.json")} - before}
    result = evaluate_model(config, lambda line: None)
    assert result.lineage.dialogues == 6
    assert {file: file.stat().st_mtime_ns for file in finished} == finished, "what was decided is not decided again"
    assert result.scores["told the state"].overall["joint_goal_accuracy"] == 1.0
    written = json.loads(result.file.read_text())
    sweep = written["scores"][MODEL]["curves"]["sweep"]
    assert [point["threshold"] for point in sweep["update"]["default"]] == [0.25, 0.75]
    assert {"no task state", "told the state"} < written["scores"].keys()


def test_a_latency_aware_evaluation_is_a_result_of_its_own_and_caches_nothing(local_ray: None, root: Path) -> None:
    says_trained_on(root, ["toy/v0", "toy/v6"])
    plain, _ = evaluated(root)
    kept = sorted((root / "cache/decisions").iterdir())
    files = []
    for speed in (2, 4):
        result, lines = evaluated(root, paced=PacedSettings(speed=speed, sessions=3))
        assert any("ms behind their frames" in line for line in lines)
        written = json.loads(result.file.read_text())
        assert written["lineage"]["marks"][0].startswith(f"latency-aware at {speed}x speed, 3 sessions at once")
        assert written["lineage"]["paced"]["dtype"] == written["paced"]["machine"]["dtype"] == "float32"
        assert written["paced"]["frames"] == written["paced"]["latency_ms"]["number"] + written["paced"]["dropped"]
        assert "<p>Latency-aware, on " in result.file.with_suffix(".html").read_text()
        assert set(written["scores"]).isdisjoint({"shuffled frames", "blank frames"})
        files.append(result.file)
    assert len({plain.file, *files}) == 3
    assert sorted((root / "cache/decisions").iterdir()) == kept
    run = Tracking(config_of(root).tracking, root).client.get_run(plain.manifest["mlflow_run"])
    assert run.data.metrics["eval/turn_f1"] == pytest.approx(plain.scores["trained model"].overall["turn_f1"])
    assert not any("paced" in name for name in run.data.metrics), "the training's run keeps the plain scores"


def test_videos_of_the_training_are_refused_or_marked(local_ray: None, root: Path) -> None:
    says_trained_on(root, ["toy/v7"])
    with pytest.raises(DataError, match=r"trained or validated on 1 of its 1 videos \(toy/v7\): .*allow_seen=true"):
        evaluated(root)
    result, lines = evaluated(root, allow_seen=True)
    assert "eval   ATTENTION: trained on 1 of these videos (toy/v7)" in lines
    assert json.loads(result.file.read_text())["lineage"]["marks"] == ["trained on 1 of these videos (toy/v7)"]


def test_another_encoder_is_found_before_anything_is_streamed(local_ray: None, root: Path) -> None:
    other = VisionSettings(model="prospect-tiny", weights="random:7", image_size=96)
    with pytest.raises(FingerprintError, match=r"have fingerprint .*, expected "):
        evaluate_model(config_of(root).model_copy(update={"vision": other}), print)


def test_a_split_that_is_not_there_names_those_that_are(local_ray: None, root: Path) -> None:
    with pytest.raises(DataError, match=r"`evaluation.split` \(tset\) .* there are test \(1\), train \(\d\), "):
        evaluated(root, split="tset")


def test_a_held_out_video_without_embedding_is_named(local_ray: None, root: Path) -> None:
    says_trained_on(root, [])
    (root / "labels/dialogues.jsonl").unlink()
    lines = (root / "dialogues.jsonl").read_text().splitlines()
    held = next(json.loads(line) for line in lines if '"v7"' in line)
    (root / "dialogues.jsonl").write_text("\n".join([*lines, json.dumps({**held, "video_id": "v9"})]) + "\n")
    report = root / "embeddings" / "quarantine.json"
    report.write_text(json.dumps({"v9": {"path": "v9.mp4", "reason": "v9.mp4 is truncated"}}))
    result, _ = evaluated(root)
    assert result.lineage.count == "1 of 2 videos"
    assert [*result.lineage.marks()] == ["1 video without an embedding: not scored (toy/v9)"]
