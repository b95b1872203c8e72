"""The embedding job: every video ends up embedded, skipped or quarantined, and a second run has nothing to do."""

import hashlib
import json
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from prospect.cluster import embed_pipeline
from prospect.cluster.embed import embed, embed_videos
from prospect.config.load import load
from prospect.data.embeddings import EmbeddingStore
from prospect.errors import CheckpointError, ConfigError, DataError, FingerprintError
from prospect.hashing import hash_file
from prospect.vision.encoder import load_encoder
from prospect.vision.fingerprint import encoder_fingerprint
from prospect.vision.report import EmbedReport, VideoGroup, VideoOutcome, VideoSource
from prospect.vision.settings import DECODER_VERSION, EmbeddingSettings, VisionSettings
from prospect.vision.stages import DecodeVideo, PictureBatch, item_of
from prospect.vision.video import sample_frames
from prospect.vision.weights import TINY
from tests.e2e.scraped import scrape_until
from tests.vision.test_changes import joined
from tests.vision.test_streams import MAIN, PREVIEW, write_streams
from tests.vision.videos import flat_picture, write_frames_file, write_video
from tests.vision.workers import Dying

ONE = EmbeddingSettings(num_encoders=1)
"""Every encoder is a process that imports torch."""
SETTINGS = VisionSettings(model=TINY, weights="random:0", image_size=64, batch_size=8)


def test_a_folder_is_embedded_once(local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [write_video(tmp_path / f"v{n}.mp4", [i / 10 for i in range(10 + 20 * n)], rate=10) for n in range(4)]
    (tmp_path / "broken.mp4").write_bytes(paths[3].read_bytes()[:500])
    names = [*paths, tmp_path / "broken.mp4", tmp_path / "missing.mp4"]
    videos = [VideoSource(path.stem, str(path)) for path in names]
    root = str(tmp_path / "store")

    first = embed_videos(videos, SETTINGS, root, ONE)
    assert (first.count("done"), first.count("skipped"), first.count("quarantined")) == (4, 0, 2)
    assert first.frames == 2 + 6 + 10 + 14
    assert "6/6 videos, 32 frames" in capsys.readouterr().out
    assert "broken.mp4 is truncated" in first.quarantined["broken"]
    assert "missing.mp4 cannot be read" in first.quarantined["missing"]

    scrape_until({"prospect_embedding_frames_total": 32, "prospect_embedding_videos_total": 6})

    store = EmbeddingStore(root)
    assert pq.read_table(f"{root}/manifest.parquet")["num_frames"].to_pylist() == [2, 6, 10, 14]
    assert set(store.quarantined()) == {"broken", "missing"}
    encoder = load_encoder(SETTINGS)
    expected = encoder.encode(np.stack(list(sample_frames(paths[1], size=64, crop="squash"))))
    np.testing.assert_array_equal(store.read("v1"), expected)

    (tmp_path / "broken.mp4").write_bytes(paths[3].read_bytes())
    written = {path: path.stat().st_mtime_ns for path in Path(root).glob("v*.safetensors")}
    second = embed_videos(videos[:5], SETTINGS, root, ONE)
    assert (second.count("done"), second.count("skipped"), second.frames) == (1, 4, 14)
    assert {path: path.stat().st_mtime_ns for path in Path(root).glob("v*.safetensors")} == written
    assert set(store.quarantined()) == {"missing"}

    with pytest.raises(FingerprintError, match=encoder.fingerprint):
        embed_videos(videos, SETTINGS.model_copy(update={"crop": "centre"}), root)


def test_videos_that_a_later_decoder_reads_otherwise_are_embedded_again_and_no_others(
    local_ray: None, tmp_path: Path
) -> None:
    plain = write_video(tmp_path / "plain.mp4", [i / 10 for i in range(10)], rate=10)
    paths = [plain, joined(tmp_path / "joined.ts"), write_streams(tmp_path / "preview.mkv", [PREVIEW, MAIN])]
    videos, store = [VideoSource(path.stem, str(path)) for path in paths], EmbeddingStore(tmp_path / "store")
    for video in videos:
        store.write(
            video.video_id, np.zeros((3, 1, 64)), fps=2, source_hash=hash_file(video.path),
            fingerprint=encoder_fingerprint(SETTINGS), decoder=1,
        )  # fmt: skip
    store.commit()
    assert store.unchecked(DECODER_VERSION) == ["joined", "plain", "preview"]
    before = (tmp_path / "store" / "plain.safetensors").stat().st_mtime_ns

    report = embed_videos(videos, SETTINGS, store.root, ONE)
    assert (report.count("done"), report.count("skipped")) == (2, 1)
    assert report.remarks() == ["2 videos embedded again: decoder 2 gives other pictures of them"]
    assert report.summary()["again"] == 2
    assert (tmp_path / "store" / "plain.safetensors").stat().st_mtime_ns == before
    assert [store.stored(v).decoder for v in ("joined", "plain", "preview")] == [2, 1, 2]
    assert (store.num_frames("joined"), store.num_frames("preview")) == (12, 4)
    assert store.unchecked(DECODER_VERSION) == []

    again = embed_videos(videos, SETTINGS, store.root, ONE)
    assert (again.count("skipped"), again.remarks()) == (3, [])


def test_a_finished_store_keeps_its_report_and_its_run(local_ray: None, tmp_path: Path) -> None:
    folder, root = tmp_path / "videos", tmp_path / "root"
    folder.mkdir()
    record = {"dataset": "home", "goal": "Make tea", "turns": [{"time": 0.5, "role": "assistant", "text": "Boil."}]}
    (folder / "dialogues.json").write_text(json.dumps(dict.fromkeys(("a", "broken", "nowhere"), record)))
    write_video(folder / "a.mp4", [0, 0.5], rate=2)
    (folder / "broken.mp4").touch()
    overrides = [f"storage.root={root}", "data=clips", f"data.path={folder}", "embedding.num_encoders=1"]
    config = load("embed", [*overrides, "vision.batch_size=8"])
    lines: list[str] = []
    embed(config, lines.append)
    assert "embed  left out 2 of 3 videos: is an empty file (1), no file (1)" in lines
    assert any("tracked as run" in line for line in lines)
    reports = {file: file.stat().st_mtime_ns for file in (root / "embeddings" / "report").iterdir()}
    assert len(reports) == 2

    lines.clear()
    embed(config, lines.append)
    assert lines[-1] == "embed  nothing new: 1 of 2 videos were embedded before"
    assert "embed  left out 2 of 3 videos: is an empty file (1), no file (1)" in lines
    assert not any("tracked" in line for line in lines)
    assert {file: file.stat().st_mtime_ns for file in reports} == reports

    (folder / "broken.mp4").write_bytes((folder / "a.mp4").read_bytes())
    embed(config, lines.append)
    assert any("tracked as run" in line for line in lines)


def test_what_is_left_out_is_counted_by_reason() -> None:
    videos = [VideoSource(name, f"/v/{name}.mp4") for name in "abcdef"]
    report = EmbedReport(videos, "store", "abcd")
    reasons = {
        "a": "video /v/a.mp4 is truncated: 1.0 s of 8.0 s can be read",
        "b": "video /v/b.mp4 is truncated: 22.5 s of 36.0 s can be read",
        "c": "video /v/c.mp4 is corrupted near 7.5 s",
        "d": "video /v/d.mp4 is corrupted near 12 s",
        "e": "row 6 of frames file /v/e.mp4 is not a picture: image of 3 bytes is no JPEG, PNG or WebP",
    }
    report.outcomes = [VideoOutcome(name, "quarantined", reason=reason) for name, reason in reasons.items()]
    report.outcomes.append(VideoOutcome("f", "done", 3))
    counts = "is truncated (2), is corrupted near N s (2), row N of frames file is not a picture (1), no file (1)"
    assert report.remarks(missing=1) == [f"left out 6 of 7 videos: {counts}"]
    assert not report.is_nothing_new({})
    report.outcomes[-1] = VideoOutcome("f", "skipped", 3)
    before = {name: {"path": "", "reason": reason} for name, reason in reasons.items()}
    assert report.is_nothing_new(before | {"of another job": {"path": "", "reason": "x"}})
    assert not report.is_nothing_new(before | {"a": {"path": "", "reason": "another"}})


@pytest.mark.parametrize("video_id", ["", "half an emoji \ud83d"])
def test_an_id_that_cannot_be_stored_is_refused_before_anything_is_encoded(tmp_path: Path, video_id: str) -> None:
    with pytest.raises(DataError, match=r"video_id .* must be text"):
        embed_videos([VideoSource(video_id, "x.mp4")], SETTINGS, str(tmp_path))


def test_a_video_that_kills_its_worker_is_quarantined_and_no_other_of_its_task(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed_pipeline, "DecodeVideo", Dying)
    monkeypatch.setattr(embed_pipeline.Places, "videos_per_task", lambda places, videos: videos)
    path = write_video(tmp_path / "v.mp4", [0, 0.5, 1.0], rate=2)
    videos = [VideoSource(name, str(path)) for name in ("a", "deadly", "b")]
    report = embed_videos(videos, SETTINGS, str(tmp_path / "store"), ONE)
    assert EmbeddingStore(tmp_path / "store").video_ids() == ["a", "b"]
    assert report.quarantined == {"deadly": f"a worker died each time that it read or encoded {path}"}


def test_urls_are_read_and_written_with_any_number_of_tokens(local_ray: None, tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", [i / 2 for i in range(21)], rate=2)
    settings = SETTINGS.model_copy(update={"tokens_per_frame": 10})
    root, source = f"file://{tmp_path}/store", VideoSource("v", f"file://{path}")
    assert embed_videos([source], settings, root).frames == 21
    expected = load_encoder(settings).encode(np.stack(list(sample_frames(path, size=64, crop="squash"))))
    assert expected.shape == (21, 10, 64)
    np.testing.assert_array_equal(EmbeddingStore(root).read("v"), expected)
    stored = EmbeddingStore(root).stored("v")
    assert stored.source_hash == hash_file(path)
    assert stored.content_hash == hashlib.sha256(expected.tobytes()).hexdigest()
    assert embed_videos([source], settings, root).count("skipped") == 1


def test_a_decoder_says_which_batch_is_the_last_and_reads_an_url_too(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", [i / 2 for i in range(21)], rate=2)
    with fsspec.open(f"memory://{path}", "wb") as file:
        file.write(path.read_bytes())
    decode = DecodeVideo(64, "squash", 8, str(tmp_path / "store"), "abcd")
    for url in (str(path), f"memory://{path}"):
        rows = list(decode(vars(VideoSource("v", url))))
        assert [item_of(row) for row in rows] == [
            PictureBatch("v", 0, 8),
            PictureBatch("v", 1, 8),
            PictureBatch("v", 2, 5, hash_file(path)),
        ]
        assert [len(row["values"]) for row in rows] == [8 * 64 * 64 * 3, 8 * 64 * 64 * 3, 5 * 64 * 64 * 3]


def test_tasks_hold_several_videos_where_there_are_many() -> None:
    places = embed_pipeline.Places(encoders=2, decoders=2, gpus=0.0)
    assert [places.videos_per_task(videos) for videos in (1, 16, 40, 460, 10_000)] == [1, 1, 2, 8, 8]


def test_encoders_that_leave_no_room_for_a_decoder_are_refused(local_ray: None, tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", [0, 0.5], rate=2)
    spread = EmbeddingSettings(num_encoders=2, encoder_cpus=1)
    with pytest.raises(ConfigError, match=r"embedding.num_encoders \(2\) .* has 2 CPUs and 0 GPUs"):
        embed_videos([VideoSource("v", str(path))], SETTINGS, str(tmp_path / "store"), spread)


def test_weights_that_do_not_fit_stop_the_job(local_ray: None, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"no weights")
    path = write_video(tmp_path / "v.mp4", [0, 0.5], rate=2)
    settings = SETTINGS.model_copy(update={"weights": str(tmp_path / "weights.pt")})
    with pytest.raises(CheckpointError, match=r"weights\.pt\) cannot be read as weights of prospect-tiny"):
        embed_videos([VideoSource("v", str(path))], settings, str(tmp_path / "store"))


def test_an_id_that_stands_for_two_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'a' names two files, x\.mp4 and y\.mp4"):
        embed_videos([VideoSource("a", "x.mp4"), VideoSource("a", "y.mp4")], SETTINGS, str(tmp_path))
    with pytest.raises(DataError, match="at least one video"):
        embed_videos([], SETTINGS, str(tmp_path))


def test_the_report_counts_by_dataset_and_split_and_foresees_the_end() -> None:
    videos = [VideoSource(name, f"{name}.mp4", *where) for name, where in [
        ("a", ("wtag", "train")), ("b", ("wtag", "val")), ("c", ("wtag", "train")), ("d", ("egoexolearn", "train")),
    ]]  # fmt: skip
    report = EmbedReport(videos, "store", "abcd", sizes={"a": 100, "b": 300, "c": 50, "d": 100}, seconds=10.0)
    report.outcomes = [
        VideoOutcome("c", "skipped", 7200),
        VideoOutcome("a", "done", 3600),
        VideoOutcome("d", "quarantined", 0, "cut"),
    ]
    report.encoded = 4000
    assert report.groups() == [
        VideoGroup("egoexolearn", "train", 1, 0, 0.0, 1),
        VideoGroup("wtag", "train", 2, 10_800, 1.5, 0),
        VideoGroup("wtag", "val", 1, 0, 0.0, 0),
    ]
    assert report.seconds_left() == (3 * 3600 - 400) / 400, "b is three times as large as a, and has 400 frames already"
    assert report.progress() == "embed: 3/4 videos, 4000 frames, 400 frames/s, 0:00:26 left, 1 quarantined"
    assert report.table().row_count == 4
    assert json.loads(json.dumps(report.to_json()))["groups"][1] == {
        "dataset": "wtag", "split": "train", "videos": 2, "frames": 10_800, "hours": 1.5, "quarantined": 0,
    }  # fmt: skip


def test_a_report_of_nothing_yet_reads_well() -> None:
    report = EmbedReport([VideoSource(name, f"{name}.mp4") for name in "abc"], "store", "abcd")
    assert report.progress() == "embed: 0/3 videos, 0 frames, 0 frames/s, time left unknown"
    assert report.table().row_count == 1


def test_a_frames_file_is_embedded_and_says_in_the_fingerprint_when_its_pictures_were_taken(
    local_ray: None, tmp_path: Path
) -> None:
    file = write_frames_file(tmp_path / "v.arrow", [flat_picture(index) for index in range(5)])
    videos, root = [VideoSource("v", str(file))], str(tmp_path / "store")
    with pytest.raises(ConfigError, match=r"set vision\.phase=start-of-interval"):
        embed_videos(videos, SETTINGS, root)
    ended = SETTINGS.model_copy(update={"tokens_per_frame": 5})
    started = ended.model_copy(update={"phase": "start-of-interval"})
    report = embed_videos(videos, started, root)
    assert (report.count("done"), report.frames) == (1, 5)
    assert EmbeddingStore(root).read("v").shape == (5, 5, 64)
    assert report.fingerprint != load_encoder(ended).fingerprint
    with pytest.raises(ConfigError, match=r"set vision\.phase=last-before-end"):
        embed_videos([VideoSource("w", str(tmp_path / "w.mp4"))], started, root)
