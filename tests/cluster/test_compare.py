"""Results that there are: which ones a name means, and what is compared without a model."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from prospect.cli import load_config
from prospect.cluster.compare import compare_results
from prospect.cluster.evaluation_result import complete_card, score_predictions
from prospect.cluster.stream_views import MODEL
from prospect.config.schema import Config
from prospect.errors import ConfigError, DataError
from prospect.evaluation.baselines import oracle, oracle_shifted, silence
from prospect.evaluation.decision_cache import hash_model
from prospect.evaluation.lineage import Lineage, scoring_rules
from prospect.evaluation.predictions import Predictions, predictions_file
from prospect.evaluation.settings import EvaluationSettings
from prospect.similarity import SentenceSimilarity
from tests.evaluation.encoders import SharedWords
from tests.evaluation.test_lineage import LINEAGE
from tests.factories import timeline_of, toy_dialogue

PLACED = [(dialogue, timeline_of(dialogue)) for dialogue in map(toy_dialogue, range(4))]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def evaluated(
    root: Path, run: str, system=oracle, age: int = 0, streamed=MappingProxyType({}), sweep=(), **lineage
) -> Path:
    """The result of a run, `age` seconds old; `streamed` are curves and measured times."""
    settings = EvaluationSettings(bootstrap_samples=20, sweep=sweep)
    datasets = {dialogue.dataset for dialogue, _ in PLACED}
    rules = scoring_rules(settings, SentenceSimilarity().identity, datasets)
    videos = {MODEL: [system(*pair) for pair in PLACED], "silence": [silence(*pair) for pair in PLACED]}
    of: Lineage = replace(LINEAGE, model=f"/runs/{run}", **{"weights": run, "rules": rules, **lineage})
    predictions = Predictions(of, {"run_name": run}, videos, {})
    file = score_predictions(predictions, settings, SharedWords(), root, **streamed).file
    os.utime(file, (1e9 - age, 1e9 - age))
    return file


def config(root: Path, *overrides: str) -> Config:
    return load_config("eval", [f"storage.root={root}", *overrides])


def test_a_result_has_its_predictions_and_its_page_beside_it(root: Path) -> None:
    file = evaluated(root, "a")
    assert sorted(path.name for path in file.parent.iterdir()) == sorted(
        [file.name, predictions_file(file).name, file.with_suffix(".html").name]
    )


def test_only_the_card_of_the_model_that_was_evaluated_is_completed(root: Path) -> None:
    folder = root / "runs" / "a" / "model"
    folder.mkdir(parents=True)
    (folder / "prospect.json").write_text(json.dumps({"run_name": "a"}))
    (folder / "config.json").write_text("{}")

    def card(weights: str) -> str:
        videos = {MODEL: [oracle(*pair) for pair in PLACED]}
        predictions = Predictions(replace(LINEAGE, weights=weights), {"run_name": "a"}, videos, {})
        return complete_card(score_predictions(predictions, EvaluationSettings(), SharedWords(), root), root)

    assert card("another training's") == ""
    assert not (folder / "README.md").exists()
    assert "| turn F1 | 1.000 | 1.000 to 1.000 |" in card(hash_model(folder))
    assert (folder / "README.md").is_file()


def test_a_name_means_a_run_a_file_or_a_model(root: Path) -> None:
    older, newer = evaluated(root, "a", silence, age=9, seen=None), evaluated(root, "a")
    other = evaluated(root, "b", oracle_shifted)
    model = root / "model"
    model.mkdir()
    (model / "prospect.json").write_text(json.dumps({"run_name": "b"}))
    (model / "config.json").write_text("{}")

    def chosen(first: object, second: object) -> tuple[str, str]:
        comparison, page = compare_results(config(root, f"compare=[{first},{second}]"))
        assert page.is_file()
        return comparison.first.lineage.key, comparison.second.lineage.key

    keys = {file: file.stem.partition("-")[2] for file in (older, newer, other)}
    assert chosen("a", "b") == (keys[newer], keys[other])
    assert chosen(older, predictions_file(other)) == (keys[older], keys[other])
    assert chosen("a", "a") == (keys[newer], keys[older])
    with pytest.raises(ConfigError, match=r"has no result in .*; evaluate it first"):
        chosen("a", model)
    shutil.copy(other, root / "kept.json")
    with pytest.raises(DataError, match=r"kept\.json\): has no predictions beside it"):
        chosen("a", root / "kept.json")


def test_the_newest_two_of_the_same_data_are_taken(root: Path) -> None:
    evaluated(root, "a", records="new")
    kept = evaluated(root, "a", age=9)
    comparison, _ = compare_results(config(root, f"compare=[a,{evaluated(root, 'b')}]"))
    assert comparison.first.lineage.key == kept.stem.partition("-")[2]
    with pytest.raises(DataError, match="different data"):
        compare_results(config(root, f"compare=[{kept},{evaluated(root, 'c', records='new')}]"))


def test_a_plain_pair_is_taken_before_newer_results_of_another_pace_context_or_engine(root: Path) -> None:
    plain, other = evaluated(root, "a", age=9), evaluated(root, "b", age=9)
    pace = {"speed": 2, "sessions": 1}
    evaluated(root, "a", paced=pace)
    for name in ("context", "streaming"):
        rules = json.loads(plain.read_text())["lineage"]["rules"] | {name: {"newer": True}}
        evaluated(root, "a", age=1, rules=rules)

    def chosen() -> tuple[str, str]:
        comparison, _ = compare_results(config(root, "compare=[a,b]"))
        return comparison.first.lineage.key, comparison.second.lineage.key

    assert chosen() == (plain.stem.partition("-")[2], other.stem.partition("-")[2])
    paced = evaluated(root, "b", paced=pace)
    assert chosen() == (plain.stem.partition("-")[2], other.stem.partition("-")[2]), "though two of one pace are newer"
    other.unlink()
    assert chosen()[1] == paced.stem.partition("-")[2]
    assert chosen()[0] != plain.stem.partition("-")[2], "of the same pace"


def test_an_unknown_name_says_what_there_is(root: Path) -> None:
    evaluated(root, "kitchen-1")
    with pytest.raises(ConfigError, match=r"^Unknown result `kitchen` of `compare` .*`kitchen-1`.*a file or a model"):
        compare_results(config(root, "compare=[kitchen,kitchen-1]"))
    with pytest.raises(ConfigError, match=r"`compare`.* must"):
        config(root, "compare=[kitchen-1]")
