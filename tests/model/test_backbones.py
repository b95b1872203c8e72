"""A backbone is a module and a line in the registry: an example beside Llama's."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from prospect.errors import CheckpointError
from prospect.model.backbones import BACKBONES, Backbone, saved_backbone
from prospect.model.checkpoint import load_model
from prospect.model.configuration import tiny_llama
from prospect.model.geometry import base_geometry, empty_model
from prospect.model.interface import DSTModel, KVGeometry
from prospect.model.llama import DSTProActConfig
from prospect.model.settings import ModelSettings
from tests.earlier import unpack


class NestedConfig(DSTProActConfig):
    model_type = "dst_example"


class Nested(DSTModel, LlamaForCausalLM):
    """Keeps its trunk under a property of another name, as a model of several parts does."""

    config_class = NestedConfig

    def __init__(self, config: NestedConfig) -> None:
        super().__init__(config)
        self.add_heads()
        self.post_init()

    @property
    def text(self) -> LlamaModel:
        return self.get_submodule("model")

    @property
    def text_config(self) -> LlamaConfig:
        return self.config


class BaseConfig(LlamaConfig):
    model_type = "example"


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "example", Backbone(NestedConfig, Nested, "an example", tiny_llama))


def test_a_base_of_a_registered_type_is_built_with_its_class(registered: None) -> None:
    base = BaseConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=40)
    model = empty_model(base, ModelSettings(base="somewhere/example"), vision_dim=8)
    assert isinstance(model, Nested)
    assert model.kv_geometry == KVGeometry(layers=2, heads=4, head_dim=8, groups=1)
    assert model.kv_geometry.bytes_per_token(2) == 2 * 2 * 4 * 8 * 2
    assert {name.split(".")[0] for name, _ in model.named_parameters()} >= {"mm_projector", "dst_state_head"}


def test_a_saved_model_is_loaded_by_what_its_configuration_says(registered: None, tmp_path: Path) -> None:
    folder = unpack(tmp_path / "root") / "runs" / "finished" / "model"
    usual = load_model(folder).model
    saved = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(saved | {"model_type": "dst_example"}))
    loaded = load_model(folder).model
    assert isinstance(loaded, Nested)
    ids, frames = torch.tensor([[20, 21, 22]]), torch.empty(0, loaded.config.vision_dim)
    assert torch.equal(loaded.trunk(ids, frames), usual.trunk(ids, frames))


def test_an_unknown_type_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="unknown model_type example; it must be one of these: llama"):
        empty_model(BaseConfig(), ModelSettings(base="somewhere/example"), vision_dim=8)
    with pytest.raises(CheckpointError, match="unknown model_type dst_example"):
        saved_backbone({"model_type": "dst_example"})
    assert base_geometry(ModelSettings(base="tiny")).model_type in BACKBONES
