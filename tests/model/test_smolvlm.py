"""SmolVLM2 as a backbone: transformers' own forward pass, what of it trains, and the earlier project's calls."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from transformers import DynamicCache, SmolVLMForConditionalGeneration

from prospect.data.clips import clip_context
from prospect.data.embeddings import EmbeddingStore
from prospect.dialogue.sequence import SequenceBuilder
from prospect.dialogue.state import StepState, TaskState
from prospect.dialogue.vocabulary import Vocabulary
from prospect.errors import CheckpointError, ConfigError, FingerprintError
from prospect.model.adapters import adapt, build_model, build_tokenizer, trainable_parameters
from prospect.model.checkpoint import LoadedModel, load_model, save_model
from prospect.model.heads import BinaryHead
from prospect.model.losses import TERMS, first_open, label_counts, loss_sums, total_loss, trunk_inputs
from prospect.model.settings import LoraSettings, LossSettings, ModelSettings
from prospect.model.smolvlm import DSTSmolVLMWithStrategies
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.settings import StreamingSettings
from prospect.vision.fingerprint import encoder_fingerprint
from prospect.vision.settings import VisionSettings
from tests.factories import (
    CONTEXT,
    TEA,
    TINY,
    claim_trained,
    collator,
    decisions,
    random_model,
    run,
    stream,
    tea_clip,
    tiny_vocabulary,
)
from tests.smolvlm import WIDTH, save_smolvlm

VOCABULARY = tiny_vocabulary()
TOWER_WIDTH = 64 * 2**2
"""Of the connector's input."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("smolvlm")
    save_smolvlm(path, VOCABULARY)
    return path


def settings(folder: Path, **changes: object) -> ModelSettings:
    lora = LoraSettings(r=4, alpha=8, dropout=0.0)
    return ModelSettings(**{"base": str(folder), "projector": "none", "adaptation": "full", "lora": lora} | changes)


def build(chosen: ModelSettings, vision_dim: int = WIDTH) -> DSTSmolVLMWithStrategies:
    tokenizer = build_tokenizer(chosen, [], Path())
    model = build_model(
        chosen, tokenizer, vision_dim=vision_dim, tokens_per_frame=9, fingerprint="f", cache=Path("/nonexistent")
    )
    assert isinstance(model, DSTSmolVLMWithStrategies)
    return model.eval()


def test_pictures_to_logits_are_those_of_transformers(folder: Path):
    whole = SmolVLMForConditionalGeneration.from_pretrained(folder).eval()
    model, image = build(settings(folder)), whole.config.image_token_id
    ids = torch.tensor([[5, 6, *[image] * 9, 7, *[image] * 9, 8]])
    pixels = torch.randn(1, 2, 3, 96, 96)
    with torch.inference_mode():
        expected = whole(input_ids=ids, pixel_values=pixels).logits
        frames = torch.cat(whole.get_image_features(pixels).pooler_output)
        hidden = model.trunk(ids, frames)
        logits = model.lm_head(hidden)[..., : expected.shape[-1]]
        assert torch.equal(model(input_ids=ids, frames=frames).logits[..., : expected.shape[-1]], logits)
    assert (logits - expected).abs().max() < 1e-5


def test_the_tokens_are_smolvlms(folder: Path):
    tokenizer = build_tokenizer(settings(folder), [], Path())
    vocabulary = Vocabulary(tokenizer)
    stop = tokenizer.convert_tokens_to_ids("<end_of_utterance>")
    assert vocabulary.image == tokenizer.convert_tokens_to_ids("<image>")
    assert build(settings(folder)).config.grammar_ids["<image>"] == vocabulary.image
    assert stop in vocabulary.stop_ids
    assert stop in build(settings(folder)).config.stop_ids


def test_frames_come_from_an_encoder_so_that_the_tower_is_dropped(folder: Path, tmp_path: Path):
    chosen = settings(folder)
    model = build(chosen)
    assert not [name for name in model.state_dict() if "vision_model" in name or "connector" in name]
    claim_trained(model)
    save_model(model, build_tokenizer(chosen, [], Path()), chosen, tmp_path / "model")
    loaded = load_model(tmp_path / "model").model
    assert isinstance(loaded, DSTSmolVLMWithStrategies)
    ids, frames = torch.tensor([[5, *[model.config.grammar_ids["<image>"]] * 9, 7]]), torch.randn(9, WIDTH)
    assert torch.equal(loaded.trunk(ids, frames), model.trunk(ids, frames))


def test_the_connector_is_frozen_in_the_encoder_or_begins_the_projector(folder: Path, caplog):
    whole = SmolVLMForConditionalGeneration.from_pretrained(folder)
    linear = build(settings(folder, projector="linear"), TOWER_WIDTH)
    assert torch.equal(linear.mm_projector.projection.weight, whole.model.connector.modality_projection.proj.weight)
    assert "mm_projector.projection.weight" in trainable_parameters(adapt(linear, settings(folder)))
    assert not list(build(settings(folder)).mm_projector.parameters())
    assert not caplog.records
    build(settings(folder, projector="linear"), 24)
    assert "begins at random" in caplog.text


def test_embeddings_of_another_size_are_one_sentence(folder: Path):
    with pytest.raises(ConfigError, match="needs embeddings as wide as the model, 64, and these have 48") as caught:
        build(settings(folder), vision_dim=48)
    assert caught.value.field == "model.projector"


@pytest.mark.parametrize("way", ["full", "lora"])
def test_no_weight_of_the_tower_is_adapted_or_trained(folder: Path, way: str):
    """Whoever keeps the tower still trains the text trunk alone, although layers of both have the same names."""
    chosen = settings(folder, adaptation=way)
    built = build(chosen)
    config = type(built.config).from_dict(built.config.to_dict() | {"keeps_vision": True})
    model = DSTSmolVLMWithStrategies(config)
    names = {name for name, _ in model.named_modules()}
    assert "model.vision_model.encoder.layers.0.self_attn.q_proj" in names
    trained = trainable_parameters(adapt(model, chosen))
    assert any("text_model" in name for name in trained)
    assert not [name for name in trained if "vision_model" in name or "connector" in name]


def test_two_outputs_are_the_earlier_heads(folder: Path):
    """The loss of two classes is that of one logit, their difference."""
    head, hidden = BinaryHead(8, "two_way"), torch.randn(5, 8)
    labels = torch.tensor([0, 1, 1, 0, 1])
    assert [tuple(p.shape) for p in head.parameters()] == [(2, 8), (2,)]
    torch.testing.assert_close(torch.sigmoid(head(hidden)), torch.softmax(head.layers(hidden), -1)[:, 1])
    torch.testing.assert_close(
        F.binary_cross_entropy_with_logits(head(hidden), labels.float()), F.cross_entropy(head.layers(hidden), labels)
    )
    model = build(settings(folder, decision_head="two_way"))
    assert model.speaking_decision_head.layers[0].out_features == model.dst_update_head.layers[0].out_features == 2


def test_alpha_weighs_the_focal_loss_as_it_was_published():
    sums, counts = torch.arange(1.0, 10.0), torch.tensor([1, 1, 1, 2, 6, 1, 9, 1, 1])
    named = dict(zip(TERMS, sums, strict=True))
    _, parts = total_loss(sums, counts, LossSettings(focal_alpha=0.25))
    assert parts["speak"] == (0.25 * named["speak_positive"] + 0.75 * named["speak_negative"]) / 8
    assert parts["update"] == (0.25 * named["update_positive"] + 0.75 * named["update_negative"]) / 10
    _, halves = total_loss(sums, counts, LossSettings())
    assert halves["speak"] == (named["speak_positive"] / 2 + named["speak_negative"] / 6) / 2


@torch.inference_mode()
def test_the_earlier_call_feeds_every_token_once(folder: Path):
    model = build(settings(folder))
    image, frames = model.config.grammar_ids["<image>"], torch.randn(9, WIDTH)
    prompt = torch.tensor([[5, 6, *[image] * 9]])
    embeds = model.embed(prompt, frames)
    ids, cache, decided = model.fast_greedy_generate_with_dst(embeds, max_length=6)
    whole = torch.cat([prompt, ids], 1)
    hidden = model.trunk(whole, frames)
    greedy = model.lm_head(hidden)[0, prompt.shape[1] - 1 : -1].argmax(-1)
    assert torch.equal(ids[0], greedy)
    assert cache.get_seq_length() == whole.shape[1]
    speak, update = model.decision_probabilities(hidden[0, prompt.shape[1] - 1])
    torch.testing.assert_close(decided, {"speaking_decision": speak, "dst_update": update})
    more, _ = model.fast_greedy_generate(model.embed(torch.tensor([[7]]), frames[:0]), cache, max_length=3)
    again = torch.cat([whole, torch.tensor([[7]]), more], 1)
    assert torch.equal(more[0], model.lm_head(model.trunk(again, frames))[0, whole.shape[1] : -1].argmax(-1))
    assert isinstance(cache, DynamicCache)


def test_the_earlier_state_head_learns_the_first_step_that_is_open():
    """Three outputs on a frame; its label is the state of the first step that is not completed."""
    chosen = TINY.model_copy(update={"state_head": "frame"})
    model, batch = random_model(chosen, VOCABULARY), collator(VOCABULARY)([tea_clip()])
    assert {name: tuple(p.shape) for name, p in model.dst_state_head.named_parameters()} == {
        "frame.weight": (3, 64), "frame.bias": (3,),
    }  # fmt: skip
    states = [tea_clip().states[frame].steps for frame in range(60)]
    expected = [next((step for step in steps if step != StepState.COMPLETED), StepState.COMPLETED) for steps in states]
    assert batch.state_labels[first_open(batch)].tolist() == expected
    assert batch.state_frames[first_open(batch)].tolist() == list(range(60))
    counts = dict(zip(TERMS, label_counts(batch, "heads", "frame").tolist(), strict=True))
    assert counts["state"] == 60
    flat = model.trunk(**trunk_inputs(batch)).flatten(0, 1)
    logits = model.dst_state_head.frame(flat[batch.decisions])
    loss = loss_sums(model, batch, LossSettings())[TERMS.index("state")]
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.tensor(expected), reduction="sum"))


def test_a_session_reads_that_step_alone_off_it():
    chosen = TINY.model_copy(update={"state_head": "frame"})
    model = random_model(chosen, VOCABULARY)
    claim_trained(model)
    torch.nn.init.constant_(model.dst_state_head.frame.weight, 0.0)
    model.dst_state_head.frame.bias.data.copy_(torch.tensor([0.0, 1.0, 0.0]))
    loaded = LoadedModel(model.eval(), VOCABULARY, Path("tiny"), {"model": chosen.model_dump()})
    engine = StreamingEngine(loaded, CONTEXT, StreamingSettings(speak_threshold=1.0, update_threshold=0.0))
    engine.open("a", replace(TEA, state=TaskState.from_labels(["completed", "not_started", "not_started"])))
    stream(engine, "a", "tea", range(1))
    [decision] = decisions(run(engine)["a"])
    assert decision.readout is not None
    assert decision.readout.labels == ("completed", "in_progress", "not_started")


def test_a_context_stands_in_its_template_of_parts(folder: Path):
    """SmolVLM2's template loses strings without a word; recipe and state are in the system turn."""
    tokenizer = build_tokenizer(settings(folder), [], Path())
    builder = SequenceBuilder(Vocabulary(tokenizer), CONTEXT, 9)
    context = clip_context(tea_clip(), builder)
    assert context.text.startswith("<|im_start|>System:")
    assert "S1 (not_started) boil water" in context.text
    assert context.text.count("<end_of_utterance>") == 2


@pytest.mark.parametrize("kind", ["idefics3", "qwen2_5_vl"])
def test_another_class_of_vision_model_is_one_sentence(tmp_path: Path, kind: str):
    save_smolvlm(tmp_path, VOCABULARY)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(CheckpointError, match=f"unknown model_type {kind}; it must be one of these: llama .*SmolVLM2"):
        build(settings(tmp_path))


def test_a_store_of_another_pooling_is_refused_with_both_fingerprints(folder: Path, tmp_path: Path):
    vision = VisionSettings(backend="smolvlm", model="any", weights=str(folder), image_size=96)
    store = EmbeddingStore(tmp_path / "embeddings")
    known = encoder_fingerprint(vision)
    store.write("tea", np.zeros((4, 1, WIDTH), np.float16), fps=2, source_hash="none", fingerprint=known)
    store.require(known, ())
    other = encoder_fingerprint(vision.model_copy(update={"pooling": "first"}))
    with pytest.raises(FingerprintError) as caught:
        store.require(other, ())
    assert known in str(caught.value)
    assert other in str(caught.value)
