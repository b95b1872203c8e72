"""The file of a video is found under every name that people give it, or the near miss is named."""

import json
import unicodedata
from pathlib import Path

import pytest

from prospect.data.labels.report import count_labels
from prospect.data.sources import Corpus, DataSettings, load_dialogues
from prospect.data.sources.files import list_files


def corpus_of(folder: Path, videos: dict[str, str], *files: str) -> Corpus:
    """A folder with files; `videos` has the data set of each id."""
    record = {"turns": [{"time": 1, "role": "user", "text": "Hi"}]}
    (folder / "dialogues.json").write_text(json.dumps({v: record | {"dataset": d} for v, d in videos.items()}))
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return load_dialogues(DataSettings(source="folder", path=folder))


@pytest.mark.parametrize(
    ("video", "file"),
    [
        ("monday.mp4", "monday.mp4"),
        ("Monday", "monday.mp4"),
        ("monday", "MONDAY.MP4"),
        ("P01/P01_02", "P01/P01_02.mp4"),
        ("day 1/cam/P01.mkv", "in/day 1/cam/P01.mkv"),
        ("küche", f"{unicodedata.normalize('NFD', 'küche')}.mp4"),
        ("a.b", "a.b.webm"),
    ],
)
def test_a_name_that_differs_in_suffix_case_or_folder_is_found(tmp_path: Path, video: str, file: str) -> None:
    corpus = corpus_of(tmp_path, {video: "home"}, file, "other.mp4")
    assert corpus.videos == {video: str(tmp_path / file)}
    assert not corpus.nearest


@pytest.mark.parametrize("suffix", ["ts", "mts", "m2ts", "3gp", "wmv", "flv", "ogv", "MTS"])
def test_the_formats_of_camcorders_and_phones_are_videos(tmp_path: Path, suffix: str) -> None:
    corpus = corpus_of(tmp_path, {"monday": "home"}, f"monday.{suffix}")
    assert corpus.videos == {"monday": f"{tmp_path}/monday.{suffix}"}


def test_the_exact_name_wins_over_one_of_another_case(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, {"Monday": "home", "monday": "home"}, "a/monday.mp4", "b/Monday.mp4")
    assert corpus.videos == {"Monday": f"{tmp_path}/b/Monday.mp4", "monday": f"{tmp_path}/a/monday.mp4"}


def test_the_nearest_name_of_a_missing_video_is_named(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, {"mondy": "home", "xyz": "home"}, "monday.mp4", "tuesday.mp4")
    assert corpus.missing_videos == ["mondy", "xyz"]
    assert corpus.nearest == {"mondy": f"{tmp_path}/monday.mp4"}
    assert f"'mondy' ({tmp_path}/monday.mp4)" in str(count_labels(corpus, lambda _: None).__rich__().caption)


def test_of_two_files_the_one_in_the_data_sets_folder_counts(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, {"v1": "wtag"}, "wtag/v1.mp4", "holoassist/v1.mp4")
    assert corpus.videos == {"v1": f"{tmp_path}/wtag/v1.mp4"}


@pytest.mark.parametrize(
    ("video", "files"),
    [("v1", ("a/v1.mp4", "b/v1.mp4")), ("v1", ("v1.mp4", "v1.mkv")), ("V1", ("a/v1.mp4", "b/v1.MP4"))],
)
def test_a_video_of_two_files_is_left_out_naming_both(tmp_path: Path, video: str, files: tuple[str, str]) -> None:
    corpus = corpus_of(tmp_path, {video: "home", "v2": "home"}, *files, "v2.mp4")
    assert corpus.videos == {"v2": f"{tmp_path}/v2.mp4"}
    [record] = corpus.quarantined
    assert (record.id, record.field) == (video, "video")
    assert all(str(tmp_path / file) in record.reason for file in files)


def test_two_data_sets_with_one_id_and_two_files_are_named(tmp_path: Path) -> None:
    record = {"turns": [{"time": 1, "role": "user", "text": "Hi"}], "video_id": "1"}
    lines = [record | {"dataset": name, "dialogue_id": name} for name in ("wtag", "ego4d")]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name in ("wtag", "ego4d"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.mp4").touch()
    corpus = load_dialogues(DataSettings(source="canonical", path=tmp_path))
    assert not corpus.videos
    assert [record.field for record in corpus.quarantined] == ["video"]


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    hidden = [".Trash-1000/files/monday.mp4", ".ipynb_checkpoints/monday.mp4", "._monday.mp4", "__MACOSX/monday.mp4"]
    corpus = corpus_of(tmp_path, {"monday": "home"}, "monday.mp4", *hidden)
    assert corpus.videos == {"monday": f"{tmp_path}/monday.mp4"}


def test_a_macs_twin_of_a_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "._a.jsonl").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X\xb0\xff")
    (tmp_path / "a.jsonl").write_text('{"dataset": "home", "video_id": "monday"}')
    corpus = load_dialogues(DataSettings(source="canonical", path=tmp_path))
    assert len(corpus.dialogues) == 1
    assert not corpus.quarantined


def test_a_hidden_folder_that_is_asked_for_is_read(tmp_path: Path) -> None:
    (tmp_path / ".data").mkdir()
    assert corpus_of(tmp_path / ".data", {"monday": "home"}, "a/monday.mp4").videos


@pytest.mark.parametrize("target", ["..", ".", "../.."])
def test_a_link_to_a_parent_folder_is_listed_once(tmp_path: Path, target: str) -> None:
    root = tmp_path / "videos"
    (root / "sub").mkdir(parents=True)
    (root / "monday.mp4").touch()
    (root / "sub" / "again").symlink_to(target)
    found = [url for url in list_files(str(root), "*.mp4", recursive=True) if "/again/" not in url]
    assert found == [f"{root}/monday.mp4"]
    assert corpus_of(root, {"monday": "home"}).videos["monday"].endswith("monday.mp4")


def test_links_to_folders_and_files_elsewhere_are_followed_and_count_once(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "monday.mp4").touch()
    root = tmp_path / "videos"
    root.mkdir()
    (root / "a").symlink_to(tmp_path / "disk")
    (root / "monday.mp4").symlink_to(tmp_path / "disk" / "monday.mp4")
    assert corpus_of(root, {"monday": "home"}).videos["monday"].startswith(str(root))
