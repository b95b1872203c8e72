"""Saved predictions are scored again: what is refused, and what of their streaming is kept."""

import json
from pathlib import Path

import pytest

from prospect.cluster.rescore import rescore
from prospect.cluster.stream_views import MODEL
from prospect.errors import ConfigError, DataError
from prospect.evaluation.baselines import oracle, oracle_shifted
from prospect.evaluation.pace_record import PacedRun
from prospect.evaluation.predictions import predictions_file
from prospect.evaluation.settings import PacedSettings
from prospect.evaluation.sweep import Point
from prospect.tracking.tracking import Tracking
from tests.cluster.test_compare import config, evaluated, root

__all__ = ["root"]
SAME = "evaluation.bootstrap_samples=20"


def result_of(file: Path) -> dict:
    return json.loads(file.read_text())


def test_predictions_are_scored_again_by_other_rules(root: Path) -> None:
    file = evaluated(root, "a", oracle_shifted)
    first = json.loads(file.read_text())
    result = rescore(config(root, f"rescore={file}", "evaluation.matching.windows={toy: [0.0, 0.0]}"))
    assert result.file != file
    assert result.file.parent == file.parent
    assert result.lineage.rules["evaluation"]["matching"]["windows"] == {"toy": [0.0, 0.0]}
    assert first["scores"][MODEL]["overall"]["metrics"]["turn_f1"] == 1.0
    assert result.scores[MODEL].overall["turn_f1"] == 0.0, "half a second late is out of the window"
    same = rescore(config(root, f"rescore={predictions_file(result.file)}", "evaluation.bootstrap_samples=20"))
    assert same.scores[MODEL].overall["turn_f1"] == 1.0
    assert same.file == file, "the first rules give the first result"


@pytest.mark.parametrize(
    "given",
    [
        "evaluation.model=x",
        "evaluation.split=validation",
        "evaluation.allow_seen=true",
        "evaluation.also=[told]",
        "evaluation.sweep=[0.5]",
        "evaluation.paced={speed: 2}",
    ],
)
def test_what_predictions_have_by_now_is_refused_beside_them(root: Path, given: str) -> None:
    with pytest.raises(ConfigError, match=rf"^`{given.partition('=')[0]}` must not be set beside rescore"):
        rescore(config(root, f"rescore={evaluated(root, 'a')}", given))


def test_the_measured_times_of_a_latency_aware_run_are_kept(root: Path) -> None:
    run = PacedRun([], PacedSettings(speed=2), [0.02, 0.03], 1.0, {"device": "CPU A"})
    pace = {**PacedSettings(speed=2).model_dump(mode="json"), "device": "CPU A"}
    file = evaluated(root, "a", streamed={"paced": run.report()}, paced=pace)
    before = result_of(file)
    assert before["paced"]["step_ms"]["p50"] == pytest.approx(25)
    same = rescore(config(root, f"rescore={file}", SAME))
    assert same.file == file, "by the same rules"
    assert result_of(file)["paced"] == before["paced"]
    assert "<p>Latency-aware, on CPU A: steps 25.0/" in file.with_suffix(".html").read_text()
    other = rescore(config(root, f"rescore={file}", SAME, "evaluation.similarity_threshold=0.9"))
    assert other.file != file
    assert result_of(other.file)["paced"] == before["paced"]
    tracking = Tracking(config(root).tracking, root)
    [experiment] = {found.experiment_id for found in tracking.client.search_experiments()} - {"0"}
    runs = tracking.client.search_runs([experiment])
    assert [found.data.metrics["eval/paced/step_ms/p50"] for found in runs] == [pytest.approx(25)] * 2
    other.file.unlink()
    with pytest.raises(DataError, match=r"measured times of the latency-aware run are missing, which test-\w+\.json"):
        rescore(config(root, f"rescore={predictions_file(other.file)}"))


def test_threshold_curves_are_kept_by_the_same_rules_and_left_out_by_others(root: Path) -> None:
    curves = {"speak": {"default": [Point(0.5, 0.4, 0.3, 0.6, 9)]}}
    file = evaluated(root, "a", streamed={"sweep": curves}, sweep=(0.5,))
    kept = result_of(file)["scores"][MODEL]["curves"]["sweep"]
    assert kept["speak"]["default"][0]["f1"] == 0.4
    lines: list[str] = []
    assert rescore(config(root, f"rescore={file}", SAME), lines.append).file == file
    more = rescore(config(root, f"rescore={file}", "evaluation.bootstrap_samples=30"), lines.append)
    assert not any("threshold curves" in line for line in lines)
    for written in (file, more.file):
        assert result_of(written)["scores"][MODEL]["curves"]["sweep"] == kept
    other = rescore(config(root, f"rescore={file}", SAME, "evaluation.event_tolerance=1"), lines.append)
    assert any("without threshold curves" in line for line in lines)
    assert "sweep" not in result_of(other.file)["scores"][MODEL]["curves"]
    assert result_of(other.file)["lineage"]["rules"]["evaluation"]["sweep"] == []
    assert result_of(file)["scores"][MODEL]["curves"]["sweep"] == kept


def test_an_unknown_system_for_the_judge_is_one_sentence(root: Path) -> None:
    judge = ["evaluation.judge.model=tiny", "evaluation.judge.systems=[silense]"]
    with pytest.raises(ConfigError, match=r"^Unknown system `silense` .*did you mean `silence`"):
        rescore(config(root, f"rescore={evaluated(root, 'a', oracle)}", *judge))
