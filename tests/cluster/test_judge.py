"""A judge in a whole evaluation of the model in tests/fixtures."""

import json
from pathlib import Path
from typing import Any

import pytest

from prospect.cluster.evaluate import evaluate_model
from prospect.cluster.evaluation_result import EvaluationResult
from prospect.cluster.stream_views import MODEL
from prospect.errors import ConfigError
from prospect.evaluation.settings import JudgeSettings
from prospect.llm.errors import EndpointError
from prospect.tracking.tracking import Tracking
from scripts.cluster import free_port
from tests.earlier import config_of, unpack
from tests.llm.misbehaving import KEY, KEY_VARIABLE, serve

RATING = """It speaks late.\n---\n{"correctness": 2, "promptness": 1.5, "efficiency": 4, "overall": 3}"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("judged") / "root")


def evaluated(root: Path, judge: JudgeSettings | None) -> tuple[EvaluationResult, list[str]]:
    config = config_of(root)
    settings = config.evaluation.model_copy(update={"model": f"{root}/runs/finished/model", "judge": judge})
    lines: list[str] = []
    return evaluate_model(config.model_copy(update={"evaluation": settings}), lines.append), lines


def test_a_judge_that_does_not_work_ends_it_before_anything_is_streamed(
    local_ray: None, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere: dict[str, Any] = {"base_url": f"http://127.0.0.1:{free_port()}/v1", "model": "tiny"}
    with pytest.raises(EndpointError, match="cannot be reached"):
        evaluated(root, JudgeSettings(**nowhere, api_key_env=""))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY is missing"):
        evaluated(root, JudgeSettings(**nowhere))
    with pytest.raises(ConfigError, match=r"Unknown system `periodical`.*did you mean `periodic`"):
        evaluated(root, JudgeSettings(**nowhere, systems=("periodical",)))
    assert not (root / "cache/decisions").exists()


def test_ratings_are_part_of_the_result_and_of_its_mlflow_run(
    local_ray: None, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    plain, _ = evaluated(root, None)
    with serve(lambda body: RATING) as endpoint:
        judge = JudgeSettings(
            base_url=endpoint.base_url, model="tiny", api_key_env=KEY_VARIABLE, systems=("oracle", MODEL)
        )
        judged, lines = evaluated(root, judge)
    assert any(line.startswith("eval   judge: 6 of 6 ratings by tiny; this run: ") for line in lines)
    assert plain.file != judged.file, "another rule, another result"
    assert json.loads(plain.file.read_text())["judge"] is None
    written = json.loads(judged.file.read_text())
    assert [*written["judge"]["systems"]] == [MODEL, "oracle"]
    assert written["judge"]["systems"][MODEL]["scores"]["promptness"]["value"] == 1.5
    page = judged.file.with_suffix(".html").read_text()
    assert "Rated from 1 to 5 by tiny" in page
    assert '<th scope="row">oracle</th><td>2.000 ±0.000<small>2.000 to 2.000</small></td><td>1.500' in page
    assert "Rated" not in plain.file.with_suffix(".html").read_text()
    assert written["lineage"]["rules"]["evaluation"]["judge"]["model"] == "tiny"
    assert written["scores"] == json.loads(plain.file.read_text())["scores"]

    tracking = Tracking(config_of(root).tracking, root)
    training = tracking.client.get_run(judged.manifest["mlflow_run"])
    runs = tracking.client.search_runs([training.info.experiment_id], "params.`evaluation.judge.model` = 'tiny'")
    assert [run.data.metrics["eval/judge_correctness"] for run in runs] == [2.0]
    uploaded = tracking.client.list_artifacts(runs[0].info.run_id, "evaluation")
    assert {Path(each.path).name for each in uploaded} == {judged.file.name, judged.file.with_suffix(".html").name}
    assert not any(KEY.encode() in file.read_bytes() for file in root.rglob("*") if file.is_file())
