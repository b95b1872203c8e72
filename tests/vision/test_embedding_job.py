"""The embedding job: every video ends up embedded, skipped or quarantined, and a second run has nothing to do."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from prospect.data.embeddings import EmbeddingStore
from prospect.errors import CheckpointError, DataError, FingerprintError
from prospect.vision import job
from prospect.vision.encoder import VisionSettings, load_encoder
from prospect.vision.job import embed_videos
from prospect.vision.report import EmbedReport, VideoSource
from prospect.vision.video import sample_frames
from prospect.vision.weights import TINY
from tests.vision.videos import write_video
from tests.vision.workers import Dying

SETTINGS = VisionSettings(model=TINY, weights="random:0", image_size=64, batch_size=8, device="cpu")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    if started:
        ray.shutdown()


def test_a_folder_is_embedded_once(cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [write_video(tmp_path / f"v{n}.mp4", [i / 10 for i in range(10 + 20 * n)], rate=10) for n in range(4)]
    (tmp_path / "broken.mp4").write_bytes(paths[3].read_bytes()[:500])
    names = [*paths, tmp_path / "broken.mp4", tmp_path / "missing.mp4"]
    videos = [VideoSource(path.stem, str(path)) for path in names]
    root = str(tmp_path / "store")

    first = embed_videos(videos, SETTINGS, root)
    assert (first.count("done"), first.count("skipped"), first.count("quarantined")) == (4, 0, 2)
    assert first.frames == 2 + 6 + 10 + 14
    assert "6/6 videos, 32 frames" in capsys.readouterr().out
    assert "broken.mp4 is truncated" in first.quarantined["broken"]
    assert "missing.mp4 cannot be read" in first.quarantined["missing"]

    store = EmbeddingStore(root)
    assert pq.read_table(f"{root}/manifest.parquet")["num_frames"].to_pylist() == [2, 6, 10, 14]
    assert set(store.quarantined()) == {"broken", "missing"}
    encoder = load_encoder(SETTINGS)
    expected = encoder.encode(np.stack(list(sample_frames(paths[1], size=64, crop="squash"))))
    np.testing.assert_array_equal(store.read("v1"), expected)

    (tmp_path / "broken.mp4").write_bytes(paths[3].read_bytes())
    written = {path: path.stat().st_mtime_ns for path in Path(root).glob("v*.safetensors")}
    second = embed_videos(videos[:5], SETTINGS, root)
    assert (second.count("done"), second.count("skipped"), second.frames) == (1, 4, 14)
    assert {path: path.stat().st_mtime_ns for path in Path(root).glob("v*.safetensors")} == written
    assert set(store.quarantined()) == {"missing"}

    with pytest.raises(FingerprintError, match=encoder.fingerprint):
        embed_videos(videos, SETTINGS.model_copy(update={"crop": "centre"}), root)


def test_a_video_that_kills_its_worker_is_quarantined(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "DecodeVideo", Dying)
    path = write_video(tmp_path / "v.mp4", [0, 0.5, 1.0], rate=2)
    videos = [VideoSource(name, str(path)) for name in ("a", "deadly", "b")]
    report = embed_videos(videos, SETTINGS, str(tmp_path / "store"))
    assert EmbeddingStore(tmp_path / "store").video_ids() == ["a", "b"]
    assert report.quarantined == {"deadly": f"a worker died each time that it read or encoded {path}"}


def test_weights_that_do_not_fit_stop_the_job(cluster: None, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"no weights")
    path = write_video(tmp_path / "v.mp4", [0, 0.5], rate=2)
    settings = SETTINGS.model_copy(update={"weights": str(tmp_path / "weights.pt")})
    with pytest.raises(CheckpointError, match=r"weights\.pt cannot be read as weights of prospect-tiny"):
        embed_videos([VideoSource("v", str(path))], settings, str(tmp_path / "store"))


def test_an_id_that_stands_for_two_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'a' stands for two files, x\.mp4 and y\.mp4"):
        embed_videos([VideoSource("a", "x.mp4"), VideoSource("a", "y.mp4")], SETTINGS, str(tmp_path))
    with pytest.raises(DataError, match="no video"):
        embed_videos([], SETTINGS, str(tmp_path))


def test_a_report_of_nothing_yet_reads_well() -> None:
    report = EmbedReport([VideoSource(name, f"{name}.mp4") for name in "abc"], "store", "abcd")
    assert report.progress() == "embed: 0/3 videos, 0 frames, 0 frames/s, time left unknown"
    assert report.table().row_count == 1
