"""What trains: everything that should, nothing else, and all of it is in the saved model."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from prospect.data.settings import LabelSamplingSettings
from prospect.errors import ConfigError
from prospect.model.adapters import adapt, build_model, build_tokenizer, trainable_parameters
from prospect.model.checkpoint import load_model, save_model
from prospect.model.parameters import parameter_groups, parameter_table
from prospect.model.settings import LoraSettings, ModelSettings
from prospect.training.backend import PlainBackend
from prospect.training.loop import MicroBatch, StepBatch, train_step
from prospect.training.settings import TrainingSettings
from tests.bases import save_base
from tests.factories import DIM, collator, tea_clip, tiny_vocabulary
from tests.needs import skip_without

VOCABULARY = tiny_vocabulary()
WAYS = ["full", "lora", "qlora"]
SETTINGS = TrainingSettings(learning_rate=1e-2, warmup_steps=0)


def adapted(
    folder: Path, way: str, backend: str = "heads", tied: bool = True, dtype: str = "float32"
) -> tuple[torch.nn.Module, ModelSettings]:
    """A base of two layers, saved and adapted."""
    if way == "qlora":
        skip_without("bitsandbytes", find_spec("bitsandbytes"))
    save_base(folder, VOCABULARY, tied)
    lora = LoraSettings(r=4, alpha=8, dropout=0.0)
    settings = ModelSettings(base=str(folder), adaptation=way, decision_backend=backend, lora=lora, dtype=dtype)
    tokenizer = build_tokenizer(settings, [], folder)
    base = build_model(settings, tokenizer, vision_dim=DIM, tokens_per_frame=1, fingerprint="f", cache=folder)
    return adapt(base, settings), settings


def train(model: torch.nn.Module, steps: int = 3) -> PlainBackend:
    backend = PlainBackend(model, SETTINGS)
    for _ in range(steps):
        micro = MicroBatch(collator(VOCABULARY, LabelSamplingSettings())([tea_clip()]))
        train_step(backend, StepBatch([micro], 1e-2), SETTINGS)
    return backend


@pytest.mark.each_backbone
@pytest.mark.parametrize("backend", ["heads", "token"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_what_trains_moves_and_is_saved_and_nothing_else(way, tied, backend, tmp_path):
    model, settings = adapted(tmp_path / "base", way, backend, tied)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(model)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == trainable_parameters(model).keys()
    save_model(model, VOCABULARY.tokenizer, settings, tmp_path / "model")
    adapter = isinstance(model, PeftModel)
    saved = load_file(tmp_path / "model" / ("adapter_model.safetensors" if adapter else "model.safetensors"))
    for name, parameter in trainable_parameters(model).items():
        assert any(torch.equal(parameter, tensor) for tensor in saved.values() if tensor.shape == parameter.shape), name


@pytest.mark.parametrize("way", ["lora", "qlora"])
def test_adapters_hold_lora_projector_heads_and_new_rows_alone(way, tmp_path):
    model, _ = adapted(tmp_path / "base", way)
    groups = {group.name: group for group in parameter_groups(model)}
    assert list(groups) == [
        "LoRA adapters", "projector", "speaking head", "update head", "state head", "rows of new tokens",
        "language model",
    ]  # fmt: skip
    assert groups["LoRA adapters"].tensors == 2 * 7 * 2, "two matrices for each of seven projections in two layers"
    assert groups["rows of new tokens"].trainable == 6 * 64
    assert groups["language model"].trainable == 0
    assert (
        groups["language model"].frozen
        == len(VOCABULARY.tokenizer) * 64 + 2 * (64 * 64 * 3 + 64 * 128 * 3 + 2 * 64) + 64
    )
    assert all(group.frozen == 0 for group in list(groups.values())[:-1])
    assert parameter_table(model).row_count == 7


def test_heads_that_no_loss_reaches_do_not_train(tmp_path):
    model, _ = adapted(tmp_path / "base", "full", backend="token")
    frozen = {name.split(".")[0] for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"speaking_decision_head", "dst_update_head"}


def test_4_bits_without_the_library_is_one_sentence(tmp_path, monkeypatch):
    model, settings = adapted(tmp_path / "base", "full")
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    with pytest.raises(ConfigError, match=r"`model\.adaptation` .qlora. needs the package bitsandbytes"):
        adapt(model, settings.model_copy(update={"adaptation": "qlora"}))


def test_trained_weights_of_a_bfloat16_base_are_kept_in_float32(tmp_path):
    model, _ = adapted(tmp_path / "base", "lora")
    model = model.to(torch.bfloat16)
    train(model, 2)
    assert {parameter.dtype for parameter in trainable_parameters(model).values()} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


@pytest.mark.each_backbone
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_was_loaded_again_is_the_trained_one(way, dtype, tmp_path):
    """Of the largest logit 2e-5 in float32; 2 % in bfloat16, and 1 % around bitsandbytes' kernels."""
    model, settings = adapted(tmp_path / "base", way, "token", tied=False, dtype=dtype)
    weights = train(model).state_dict()
    save_model(model, VOCABULARY.tokenizer, settings, tmp_path / "model", state_dict=weights)
    loaded = load_model(tmp_path / "model", allow_untrained=True).model
    assert {parameter.dtype for parameter in loaded.parameters()} == {getattr(torch, dtype)}
    assert loaded.text.rotary_emb.inv_freq.dtype == torch.float32
    ids = torch.tensor([[5, 6, 7, 8, *VOCABULARY.encode("pour water")]])
    bfloat16 = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")
    with torch.inference_mode(), bfloat16:
        one, other = model.eval()(input_ids=ids).logits.float(), loaded(ids).logits.float()
    tolerance = 0.02 if dtype == "bfloat16" else 0.01 if way == "qlora" else 2e-5
    assert (one - other).abs().max() < tolerance * one.abs().max()


def test_small_updates_of_bfloat16_weights_add_up(tmp_path):
    """Ten of 1e-6, on weights of about 0.02, whose last bit is 1e-4 in bfloat16."""
    model, _ = adapted(tmp_path / "base", "full", dtype="bfloat16")
    before = model.text.layers[0].mlp.up_proj.weight.detach().float().clone()
    backend = PlainBackend(model, SETTINGS)
    batch = MicroBatch(collator(VOCABULARY, LabelSamplingSettings())([tea_clip()]))
    for _ in range(10):
        train_step(backend, StepBatch([batch], 1e-6), SETTINGS)
    moved = (model.text.layers[0].mlp.up_proj.weight.detach() - before).abs()
    assert moved.median() > 5e-6


def test_a_bfloat16_model_is_the_base_rounded_and_turns_positions_in_float32(tmp_path):
    """Also where the base has fewer rows than the tokenizer, and brings several stop ids of its own."""
    _, settings = adapted(tmp_path / "base", "full", tied=False)
    folder = tmp_path / "small"
    small = save_base(folder, VOCABULARY, tied=False, fewer=6, stops=[VOCABULARY.stop, 7])
    changed = settings.model_copy(update={"base": str(folder), "dtype": "bfloat16", "whiten_frames": True})
    one, again = (
        build_model(changed, VOCABULARY.tokenizer, vision_dim=DIM, tokens_per_frame=1, fingerprint="f", cache=tmp_path)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), again.state_dict().values(), strict=True))
    for matrix in (f"{one.text_path}.embed_tokens.weight", "lm_head.weight"):
        whole, base = one.get_parameter(matrix), small.get_parameter(matrix)
        assert len(whole) == len(base) + 6
        assert torch.equal(whole[: len(base)], base.bfloat16())
    projection = f"{one.text_path}.layers.1.mlp.up_proj.weight"
    assert torch.equal(one.get_parameter(projection), small.get_parameter(projection).bfloat16())
    assert {buffer.dtype for buffer in one.buffers()} == {torch.float32}
    assert torch.equal(one.mm_projector.whitening, torch.eye(DIM))
    assert one.mm_projector.up.weight.std() > 0
    assert one.config.stop_ids == sorted({VOCABULARY.stop, 7})
    assert (one.text_config.vocab_size, one.config.tie_word_embeddings) == (len(VOCABULARY.tokenizer), False)
