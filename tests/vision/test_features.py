"""ProAssist's `.arrow` features become an embedding store under a fingerprint of their own."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from prospect.data.embeddings import EmbeddingStore
from prospect.errors import FingerprintError
from prospect.vision.features import features_fingerprint, import_features
from prospect.vision.fingerprint import encoder_fingerprint
from prospect.vision.report import EmbedReport, VideoSource
from prospect.vision.settings import VisionSettings
from prospect.vision.weights import TINY

ENCODER = "google___siglip-so400m-patch14-384@-2"
D = 12
SIDES = {"cls": 1, "2x2": 4, "3x3": 9, "5x5": 25}


def features(frames: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.standard_normal((frames, rows, D)).astype(np.float16) for name, rows in SIDES.items()}


def write_features(path: Path, values: dict[str, np.ndarray], rows_a_batch: int = 4, *, stream: bool = True) -> Path:
    """As Hugging Face writes them: nested lists, several record batches, a stream without a footer."""
    two_deep = pa.list_(pa.list_(pa.float16()))
    table = pa.table({name: pa.array([list(map(list, row)) for row in v], two_deep) for name, v in values.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=rows_a_batch)
    return path


def bring(files: Mapping[str, Path | str], root: Path | str, tokens: int = 1, dim: int | None = None) -> EmbedReport:
    videos = [VideoSource(video_id, str(path)) for video_id, path in files.items()]
    return import_features(videos, ENCODER, tokens, str(root), dim=dim)


@pytest.mark.parametrize(("tokens", "columns"), [(1, ["cls"]), (5, ["cls", "2x2"]), (10, ["cls", "3x3"])])
def test_a_folder_of_features_is_imported_once(tmp_path: Path, tokens: int, columns: list[str]) -> None:
    a, b = features(11), features(3, seed=1)
    files = {
        "a": write_features(tmp_path / "a.arrow", a),
        "b": write_features(tmp_path / "b.arrow", b, stream=False),
    }
    root = str(tmp_path / "store")
    report = bring(files, root, tokens)
    assert (report.count("done"), report.frames) == (2, 14)
    store = EmbeddingStore(root)
    np.testing.assert_array_equal(store.read("a"), np.concatenate([a[column] for column in columns], axis=1))
    np.testing.assert_array_equal(store.read("b"), np.concatenate([b[column] for column in columns], axis=1))
    assert store.fingerprint == features_fingerprint(ENCODER, tokens)

    again = bring({"a": f"file://{files['a']}", "b": files["b"]}, root, tokens)
    assert (again.count("skipped"), again.count("done")) == (2, 0)


def test_flat_single_precision_vectors_are_features_too(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((5, D)).astype(np.float32)
    table = pa.table({"cls": pa.array(list(values), pa.list_(pa.float32(), D))})
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    bring({"a": tmp_path / "a.arrow"}, tmp_path / "store")
    np.testing.assert_array_equal(EmbeddingStore(tmp_path / "store").read("a")[:, 0], values.astype(np.float16))


def test_what_is_no_feature_file_is_quarantined_with_its_reason(tmp_path: Path) -> None:
    good = write_features(tmp_path / "good.arrow", features(3))
    cut = tmp_path / "cut.arrow"
    cut.write_bytes(good.read_bytes()[:-400])
    noise = tmp_path / "noise.arrow"
    noise.write_bytes(b"no arrow at all")
    poor = write_features(tmp_path / "poor.arrow", {"5x5": features(2)["5x5"]})
    wide = write_features(tmp_path / "wide.arrow", {"cls": np.zeros((2, 1, D + 1), np.float16)})
    files = {path.stem: path for path in (good, cut, noise, poor, wide, tmp_path / "gone.arrow")}
    report = bring(files, tmp_path / "store", dim=D)
    assert EmbeddingStore(tmp_path / "store").video_ids() == ["good"]
    assert (
        set(report.quarantined)
        == {"cut", "noise", "poor", "wide", "gone"}
        == set(EmbeddingStore(tmp_path / "store").quarantined())
    )
    assert "lack the column 'cls'; their columns are 5x5" in report.quarantined["poor"]
    assert "have 13 dimensions" in report.quarantined["wide"]


def test_each_way_of_making_features_has_its_fingerprint() -> None:
    made = [(ENCODER, 1), (ENCODER, 5), (ENCODER, 10), ("another", 1)]
    assert len({features_fingerprint(*one) for one in made}) == len(made)


def test_imported_features_are_another_encoder_s_until_they_are_declared_as_good(tmp_path: Path) -> None:
    path = write_features(tmp_path / "a.arrow", features(3))
    bring({"a": path}, tmp_path / "store")
    store, imported = EmbeddingStore(tmp_path / "store"), features_fingerprint(ENCODER, 1)
    ours = VisionSettings(model=TINY, weights="random:0", image_size=64)
    with pytest.raises(FingerprintError) as refused:
        store.require(encoder_fingerprint(ours), ours.equivalent_to)
    for named in (imported, encoder_fingerprint(ours), f"vision.equivalent_to=[{imported}]"):
        assert named in str(refused.value)
    declared = ours.model_copy(update={"equivalent_to": (imported,)})
    store.require(encoder_fingerprint(declared), declared.equivalent_to)
