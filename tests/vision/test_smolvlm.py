"""SmolVLM2's tower and connector as an encoder: what transformers computes, pooled or not, and what it was made of."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import SmolVLMForConditionalGeneration

from prospect.errors import CheckpointError, ConfigError, ProspectError
from prospect.vision.encoder import load_encoder
from prospect.vision.fingerprint import encoder_fingerprint
from prospect.vision.settings import VisionSettings
from prospect.vision.towers import tower_width
from tests.factories import tiny_vocabulary
from tests.smolvlm import WIDTH, save_smolvlm

SIZE = 96


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("smolvlm")
    save_smolvlm(path, tiny_vocabulary())
    return path


@pytest.fixture(scope="module")
def whole(folder: Path) -> SmolVLMForConditionalGeneration:
    return SmolVLMForConditionalGeneration.from_pretrained(folder).eval()


def settings(folder: Path, **changes: object) -> VisionSettings:
    fields = {"backend": "smolvlm", "model": "any", "weights": str(folder), "image_size": SIZE, "batch_size": 4}
    return VisionSettings(**fields | changes)


def pictures(count: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def pixels(frames: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


@torch.inference_mode()
def features(whole: SmolVLMForConditionalGeneration, values: torch.Tensor) -> np.ndarray:
    """[N, T, D], by transformers."""
    return torch.stack(whole.get_image_features(values[:, None]).pooler_output).numpy()


def test_all_tokens_are_those_of_transformers(folder: Path, whole: SmolVLMForConditionalGeneration):
    frames = pictures(3)
    encoder = load_encoder(settings(folder, tokens_per_frame=9))
    assert (encoder.tokens_per_frame, encoder.dim) == (9, WIDTH)
    expected = features(whole, pixels(frames))
    np.testing.assert_allclose(encoder.encode(frames), expected, rtol=2e-3, atol=1e-4)


def test_one_token_is_their_mean_or_the_first(folder: Path, whole: SmolVLMForConditionalGeneration):
    frames, expected = pictures(2), features(whole, pixels(pictures(2)))
    for pooling, one in (("mean", expected.mean(1)), ("first", expected[:, 0])):
        encoded = load_encoder(settings(folder, pooling=pooling)).encode(frames)
        np.testing.assert_allclose(encoded[:, 0], one, rtol=2e-3, atol=1e-4)


def test_a_split_picture_is_16_crops_and_then_the_whole(folder: Path, whole: SmolVLMForConditionalGeneration):
    frames = pictures(1, 4 * SIZE)
    encoded = load_encoder(settings(folder, tokens_per_frame=153, image_size=4 * SIZE)).encode(frames)
    assert encoded.shape == (1, 17 * 9, WIDTH)
    third = frames[:, :SIZE, 2 * SIZE : 3 * SIZE]
    np.testing.assert_allclose(encoded[:, 18:27], features(whole, pixels(third)), rtol=2e-3, atol=1e-4)
    sixth = frames[:, SIZE : 2 * SIZE, SIZE : 2 * SIZE]
    np.testing.assert_allclose(encoded[:, 45:54], features(whole, pixels(sixth)), rtol=2e-3, atol=1e-4)
    values = torch.nn.functional.interpolate(pixels(frames), (SIZE, SIZE), mode="bicubic", antialias=True)
    np.testing.assert_allclose(encoded[:, -9:], features(whole, values), rtol=5e-3, atol=5e-4)


def test_before_the_connector_is_what_it_projects(folder: Path, whole: SmolVLMForConditionalGeneration):
    frames, weight = pictures(2), whole.model.connector.modality_projection.proj.weight.detach().numpy()
    before = load_encoder(settings(folder, connector=False))
    behind = load_encoder(settings(folder))
    assert before.dim == 64 * 2**2 == tower_width(settings(folder, connector=False))
    assert behind.dim == WIDTH == tower_width(settings(folder))
    projected = before.encode(frames).astype(np.float32) @ weight.T
    np.testing.assert_allclose(projected, behind.encode(frames), rtol=1e-2, atol=1e-3)


def test_a_picture_does_not_depend_on_its_batch(folder: Path):
    encoder = load_encoder(settings(folder, tokens_per_frame=9))
    frames = pictures(6)
    alone = np.concatenate([encoder.encode(frames[at : at + 1]) for at in range(6)])
    np.testing.assert_array_equal(encoder.encode(frames), alone)


def test_the_fingerprint_covers_the_tower_and_how_it_is_used(folder: Path, tmp_path: Path):
    known = encoder_fingerprint(settings(folder))
    changes = [{"pooling": "first"}, {"connector": False}, {"tokens_per_frame": 9}, {"image_size": 4 * SIZE}]
    assert len({known, *(encoder_fingerprint(settings(folder, **change)) for change in changes)}) == 5
    save_smolvlm(tmp_path / "cut", tiny_vocabulary(), shards="100KB")
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 1
    assert encoder_fingerprint(settings(tmp_path / "cut")) == known, "however the file is cut"
    for name, same in (("lm_head.weight", True), ("model.connector.modality_projection.proj.weight", False)):
        other = tmp_path / name
        save_smolvlm(other, tiny_vocabulary())
        state = load_file(other / "model.safetensors")
        state[name] = state.get(name, state["model.text_model.embed_tokens.weight"]) + 1
        save_file(state, other / "model.safetensors", {"format": "pt"})
        assert (encoder_fingerprint(settings(other)) == known) == same


def test_settings_of_smolvlm_leave_other_fingerprints_as_they_were():
    tiny = VisionSettings(model="prospect-tiny", weights="random:0", image_size=64)
    assert {"pooling", "connector"} < set(tiny.model_dump())
    for change in ({"pooling": "first"}, {"connector": False}):
        with pytest.raises(ValidationError, match="settings of backend=smolvlm"):
            VisionSettings(**tiny.model_dump() | change)


def test_wrong_folders_and_numbers_are_one_sentence(folder: Path, tmp_path: Path):
    def sentence(kind: type[ProspectError], **changes: object) -> str:
        with pytest.raises(kind) as caught:
            load_encoder(settings(folder, **changes))
        assert caught.value.field in ("vision.weights", "vision.model", "vision.tokens_per_frame", "vision.image_size")
        return str(caught.value)

    assert "must be 1 (pooled), 9" in sentence(ConfigError, tokens_per_frame=5)
    assert "must be 384 for pictures that are split" in sentence(ConfigError, tokens_per_frame=153)
    assert "must be `hub`, or a folder" in sentence(CheckpointError, weights=str(tmp_path / "none"))
    assert "of unknown size" in sentence(ConfigError, weights="random:0")

    other = tmp_path / "idefics"
    save_smolvlm(other, tiny_vocabulary())
    saved = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({"model_type": "idefics3", "text_config": saved["text_config"]}))
    assert "are of the class idefics3: give a folder of SmolVLM2" in sentence(CheckpointError, weights=str(other))

    blind = tmp_path / "blind"
    save_smolvlm(blind, tiny_vocabulary())
    state = load_file(blind / "model.safetensors")
    text = {name: value for name, value in state.items() if "text_model" in name}
    save_file(text, blind / "model.safetensors", {"format": "pt"})
    assert "have no vision tower" in sentence(CheckpointError, weights=str(blind))
    (blind / "model.safetensors").write_bytes(b"\1" * 20)
    assert "cannot be read as safetensors" in sentence(CheckpointError, weights=str(blind))

    larger = tmp_path / "larger"
    save_smolvlm(larger, tiny_vocabulary())
    saved["vision_config"]["hidden_size"] = 128
    (larger / "config.json").write_text(json.dumps(saved))
    assert "do not fit their config.json" in sentence(CheckpointError, weights=str(larger))
