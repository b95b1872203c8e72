"""The embedding job under kill -9 of everything it consists of, and the memory that a long video takes."""

import os
import signal
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from prospect.data.embeddings import EmbeddingStore
from tests.e2e.embed_runs import Run
from tests.vision.videos import flat_picture, write_video

pytestmark = [pytest.mark.e2e, pytest.mark.long]
NUM_VIDEOS, SECONDS = 10, 200


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten videos of different lengths, no two with the same pictures."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(NUM_VIDEOS):
        count = 2 * SECONDS + 7 * number
        pictures = [flat_picture(index + number) for index in range(count)]
        write_video(folder / f"v{number}.mp4", [index / 2 for index in range(count)], pictures, rate=2)
    return folder


@pytest.fixture(scope="module")
def undisturbed(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    store = tmp_path_factory.mktemp("undisturbed")
    report = Run(videos, store).wait()
    assert (report["done"], report["quarantined"]) == (NUM_VIDEOS, 0)
    return contents(store)


def contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.glob("*.safetensors")}


def identities(store: Path) -> dict[str, tuple[int, int]]:
    """A file that is written again is another inode."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in store.glob("*.safetensors")}


def assert_whole(store: Path, undisturbed: dict[str, bytes]) -> dict[str, tuple[int, int]]:
    """Every visible file is one that the undisturbed run wrote, to the byte."""
    for name, content in contents(store).items():
        assert content == undisturbed[name], name
    return identities(store)


def test_killed_again_and_again_it_embeds_each_video_once(
    videos: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "store"

    run = Run(videos, store)
    run.until_finished(1)
    run.kill_driver()
    after_driver = assert_whole(store, undisturbed)
    assert 1 <= len(after_driver) < NUM_VIDEOS

    run = Run(videos, store)
    run.until_finished(len(after_driver) + 1)
    run.kill_ray()
    run.end()
    after_ray = assert_whole(store, undisturbed)
    assert after_driver.items() <= after_ray.items(), "a finished video was written again"

    run = Run(videos, store)
    run.until_finished(len(after_ray) + 1)
    run.interrupt()
    assert "KeyboardInterrupt" in run.end()
    after_interrupt = assert_whole(store, undisturbed)
    assert after_ray.items() <= after_interrupt.items()
    assert (store / "manifest.parquet").exists()

    report = Run(videos, store).wait()
    assert report["skipped"] == len(after_interrupt)
    assert report["done"] == NUM_VIDEOS - report["skipped"]
    assert report["quarantined"] == 0
    assert contents(store) == undisturbed
    assert after_interrupt.items() <= assert_whole(store, undisturbed).items()


@pytest.mark.parametrize("stage", ["DecodeVideo", "EncodeBatch"])
def test_a_killed_worker_costs_nothing_but_time(
    videos: Path, undisturbed: dict[str, bytes], tmp_path: Path, stage: str
) -> None:
    run = Run(videos, tmp_path / "store")
    run.until_finished(1)
    before = identities(tmp_path / "store")
    killed = run.workers(stage)[0]
    os.kill(killed.pid, signal.SIGKILL)
    report = run.wait()
    assert (report["done"], report["quarantined"]) == (NUM_VIDEOS, 0)
    assert contents(tmp_path / "store") == undisturbed
    assert before.items() <= identities(tmp_path / "store").items()


def write_long(path: Path, minutes: int) -> None:
    """128x128, 5 pictures a second, written as fast as the coder goes."""
    random = np.random.default_rng(0)
    pictures = [av.VideoFrame.from_ndarray(random.integers(0, 256, (128, 128, 3), np.uint8)) for _ in range(8)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5, options={"preset": "ultrafast", "crf": "51"})
        stream.width, stream.height, stream.pix_fmt = 128, 128, "yuv420p"
        for number in range(minutes * 60 * 5):
            frame = pictures[number // 50 % 8]
            frame.pts, frame.time_base = number, Fraction(1, 5)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_memory_does_not_grow_with_a_video_s_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peaks: dict[int, int] = {}
    for minutes in (10, 120):
        folder, store = tmp_path / f"videos{minutes}", tmp_path / f"store{minutes}"
        folder.mkdir()
        write_long(folder / "long.mp4", minutes)
        run = Run(folder, store, image_size=96)
        with run.watched():
            run.wait()
        peaks[minutes] = run.peak_bytes
        assert EmbeddingStore(store).num_frames("long") == minutes * 60 * 2
    together = 110 * 60 * 2 * 96 * 96 * 3
    with capsys.disabled():
        print(f"\npeak memory: {peaks[10] / 1e6:.0f} MB for 10 minutes, {peaks[120] / 1e6:.0f} MB for 2 hours")
    assert peaks[120] - peaks[10] < together / 3, "a third of what the other 110 minutes' pictures take"
