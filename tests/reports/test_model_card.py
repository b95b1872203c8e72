"""A model's card: what it was trained on, whose base it has, how it scored, and how to serve it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from prospect.evaluation.baselines import oracle, silence
from prospect.evaluation.decision_cache import hash_model
from prospect.evaluation.metrics import evaluate
from prospect.evaluation.settings import EvaluationSettings
from prospect.reports.model_card import CARD, add_evaluation, without_head, write_card
from tests.evaluation.test_lineage import LINEAGE

DATA = {
    "datasets": {"a|b <script>": {"train": {"videos": 3, "dialogues": 9, "frames": 1200, "clips": 12}}},
    "records": "r1",
    "embeddings": "e1",
    "quarantined": 2,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    manifest = {
        "run_name": "kitchen 1",
        "model": {"base": "package:smollm2_135m", "adaptation": "lora"},
        "vision": {"model": "ViT-SO400M", "weights": "webli"},
        "training": {"step": 40, "model_step": 30, "validation": {"speak_f1": 0.5, "loss": 1.0}},
    }
    config = {"fingerprint": "f1", "thresholds": {"default": {"speak": 0.3}}, "architectures": ["DSTProAct"]}
    (tmp_path / "prospect.json").write_text(json.dumps(manifest))
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"a": np.zeros((3, 4)), "b": np.zeros(5)}, tmp_path / "model.safetensors")
    return tmp_path


def scores(system, references, words):
    settings = EvaluationSettings(bootstrap_samples=20)
    return evaluate([system(*reference) for reference in references], settings, words).overall


def test_the_card_of_a_training_says_what_the_model_is(folder: Path) -> None:
    before = hash_model(folder)
    card = write_card(folder, DATA, "apache-2.0", "3 videos; 40 steps.")
    assert card == (folder / CARD).read_text()
    assert card.startswith(
        "---\nlibrary_name: prospect\nlicense: apache-2.0\n---\n\n# kitchen 1\n\n3 videos; 40 steps."
    )
    for line in (
        "| a\\|b &lt;script&gt; | train | 3 | 9 | 1,200 | 12 |",
        "| base | package:smollm2_135m |",
        "| licence of the base | apache-2.0 |",
        "| parameters in the folder | 17 |",
        "| optimizer steps | 40, weights of step 30 |",
        "| thresholds | others speak 0.3 |",
        "| speak F1 | 0.500 |",
        "serve run serve.app:app serving.model=FOLDER   # this folder",
    ):
        assert line in card.splitlines()
    assert "fingerprint `f1`" in card
    assert "Not evaluated yet" in card
    assert hash_model(folder) == before, "the hash of a model does not cover its card"
    assert without_head(card).startswith("# kitchen 1")


def test_each_evaluation_has_a_section_which_the_same_one_replaces(folder: Path, references, words) -> None:
    write_card(folder, DATA, "unknown")
    add_evaluation(folder, LINEAGE, scores(silence, references, words))
    other = replace(LINEAGE, split="validation", seen=("home/tea",))
    add_evaluation(folder, other, scores(silence, references, words))
    card = add_evaluation(folder, LINEAGE, scores(oracle, references, words))
    assert card == (folder / CARD).read_text()
    assert [line for line in card.splitlines() if line.startswith("### ")] == [
        f"### test, {LINEAGE.key}",
        f"### validation, {other.key}",
    ]
    assert "40 dialogues of 23 videos; records `r`, context state_refresh." in card.splitlines()
    assert card.count("## Evaluation") == 1
    assert "Not evaluated yet" not in card
    assert "| turn F1 | 1.000 | 1.000 to 1.000 |" in card.splitlines()
    assert "| turn F1 | 0.000 | 0.000 to 0.000 |" in card.splitlines()
    assert "**ATTENTION: trained on 1 of these videos (home/tea).**" in card


def test_a_model_of_an_earlier_version_gets_a_card_with_its_scores(folder: Path, references, words) -> None:
    card = add_evaluation(folder, LINEAGE, scores(oracle, references, words))
    assert "Counts by split: unknown" in card
    assert f"### test, {LINEAGE.key}" in card
