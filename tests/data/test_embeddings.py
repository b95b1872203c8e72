"""The embedding store: exact round trips, slices, one fingerprint, nothing half-written."""

import hashlib
import os
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import fs
from safetensors import safe_open

from prospect.data.embeddings import FIRST_DECODER, EmbeddingStore
from prospect.errors import DataError, FingerprintError


def embedding(frames: int = 7, tokens: int = 2, dim: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((frames, tokens, dim)).astype(np.float16)


def write(store: EmbeddingStore, video_id: str, frames: np.ndarray, fingerprint: str = "aaaa") -> None:
    store.write(video_id, frames, fps=2, source_hash=f"hash of {video_id}", fingerprint=fingerprint)


@pytest.fixture(params=["folder", "file://", "memory://"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> EmbeddingStore:
    roots = {"folder": str(tmp_path / "s"), "file://": f"file://{tmp_path}/s", "memory://": f"memory://{tmp_path}/s"}
    return EmbeddingStore(roots[request.param])


def test_what_is_written_is_read(store: EmbeddingStore) -> None:
    frames = embedding()
    write(store, "a", frames)
    write(store, "b", embedding(3, seed=1))
    np.testing.assert_array_equal(store.read("a"), frames)
    np.testing.assert_array_equal(store.read("a", 2, 5), frames[2:5])
    assert store.read("a", 4, 4).shape == (0, 2, 3)
    assert store.read("a").dtype == np.float16
    assert (store.num_frames("a"), store.num_frames("b")) == (7, 3)
    assert (store.dim, store.tokens_per_frame, store.fingerprint) == (3, 2, "aaaa")
    assert store.video_ids() == ["a", "b"]


def test_a_file_is_plain_safetensors_whose_bytes_depend_on_nothing_but_the_embedding(tmp_path: Path) -> None:
    first, second = EmbeddingStore(tmp_path / "first"), EmbeddingStore(tmp_path / "second")
    for store in (first, second):
        write(store, "a", embedding())
    path = tmp_path / "first" / "a.safetensors"
    assert path.read_bytes() == (tmp_path / "second" / "a.safetensors").read_bytes()
    with safe_open(path, "np") as file:
        np.testing.assert_array_equal(file.get_tensor("frames"), embedding())
        assert file.metadata()["fingerprint"] == "aaaa"
    assert first.stored("a").content_hash == hashlib.sha256(embedding().tobytes()).hexdigest()


def test_a_new_store_is_empty_and_says_so(store: EmbeddingStore) -> None:
    assert store.video_ids() == []
    with pytest.raises(DataError, match=r"no embeddings in .*; run jobs/embed.py first"):
        _ = store.fingerprint
    write(store, "a", embedding())
    assert store.fingerprint == "aaaa"


def test_only_the_same_file_by_the_same_encoder_counts_as_done(store: EmbeddingStore) -> None:
    write(store, "a", embedding())
    assert store.has("a", "hash of a", "aaaa")
    assert not store.has("a", "another file", "aaaa")
    assert not store.has("a", "hash of a", "bbbb")
    assert not store.has("b", "hash of b", "aaaa")


def test_a_second_fingerprint_is_refused_naming_both(store: EmbeddingStore) -> None:
    write(store, "a", embedding())
    with pytest.raises(FingerprintError, match=r"aaaa.*bbbb"):
        write(store, "b", embedding(), fingerprint="bbbb")
    with pytest.raises(FingerprintError, match=r"aaaa.*bbbb"):
        EmbeddingStore(store.root).require("bbbb")
    EmbeddingStore(store.root).require("aaaa")
    EmbeddingStore(store.root).require("bbbb", ["cccc", "aaaa"])
    assert store.video_ids() == ["a"]


def test_the_manifest_lists_every_video(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    write(store, "b", embedding(3))
    write(store, "a/x", embedding(5))
    rows = store.commit()
    assert pq.read_table(tmp_path / "manifest.parquet").to_pylist() == [vars(row) for row in rows]
    assert [(row.video_id, row.num_frames, row.file) for row in rows] == [
        ("a/x", 5, "a%2Fx.safetensors"),
        ("b", 3, "b.safetensors"),
    ]


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(video_id=st.text(min_size=1, max_size=20))
def test_any_text_is_a_video_id(tmp_path_factory: pytest.TempPathFactory, video_id: str) -> None:
    folder = tmp_path_factory.mktemp("store")
    store = EmbeddingStore(folder)
    write(store, video_id, embedding())
    assert store.video_ids() == [video_id]
    assert len(list(folder.iterdir())) == 1


LONG_IDS = ["朝ごはんの目玉焼きとトーストを手早く作る方法を一から丁寧に解説", "a" * 300, "п" * 39, "🍳" * 500]


def test_ids_of_any_length_have_a_name_that_fits_the_file_system(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    alike = [long + end for long in LONG_IDS for end in ("", "1", "2")]
    for number, video_id in enumerate(alike):
        write(store, video_id, embedding(number + 1))
    names = [file.name for file in tmp_path.iterdir()]
    assert len(names) == len(alike)
    assert max(len(name.encode()) for name in names) <= 255
    assert store.video_ids() == sorted(alike)
    assert [store.num_frames(video_id) for video_id in alike] == [number + 1 for number in range(len(alike))]
    assert {row.video_id: row.file for row in store.commit()}.keys() == set(alike)
    write(store, LONG_IDS[0], embedding(50))
    assert (len(list(tmp_path.glob("*.safetensors"))), store.num_frames(LONG_IDS[0])) == (len(alike), 50)


def test_stores_with_names_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    """All names of up to 240 bytes were the percent-encoded id, and still are."""
    store = EmbeddingStore(tmp_path)
    for video_id in ("P01/P01_02", "a" * 228, "b=c", "é"):
        write(store, video_id, embedding())
        assert (tmp_path / f"{quote(video_id, safe='')}.safetensors").is_file()
    assert store.video_ids() == sorted(["P01/P01_02", "a" * 228, "b=c", "é"])


class CaseDoesNotCount(fs.FSSpecHandler):
    """A file system that keeps the case of names and ignores it, as those of macOS and Windows do."""

    def __init__(self, root: Path) -> None:
        super().__init__(LocalFileSystem())
        self._root = root

    def _there(self, path: str) -> str:
        same = [str(file) for file in self._root.iterdir() if str(file).lower() == path.lower()]
        return same[0] if same else path

    def open_input_file(self, path: str) -> pa.NativeFile:
        return super().open_input_file(self._there(path))

    def move(self, src: str, dest: str) -> None:
        Path(src).replace(self._there(dest))


@pytest.mark.parametrize(
    "video_ids",
    [["Monday", "monday", "MONDAY"], ["caf\u00e9", "cafe\u0301"], ["\u00c9", "\u00e9"], ["a" * 300, "A" * 300]],
    ids=["case", "Unicode form", "case of an accent", "long"],
)
def test_ids_that_differ_by_case_or_unicode_form_do_not_collide(tmp_path: Path, video_ids: list[str]) -> None:
    store = EmbeddingStore(tmp_path)
    store._fs = fs.PyFileSystem(CaseDoesNotCount(tmp_path))
    for number, video_id in enumerate(video_ids):
        write(store, video_id, embedding(number + 1))
    write(store, video_ids[0], embedding(9))
    assert [store.num_frames(video_id) for video_id in video_ids] == [9, 2, 3][: len(video_ids)]
    assert store.video_ids() == sorted(video_ids)
    assert not store.has("mOnDaY", "", "aaaa")


def test_the_header_says_which_decoder_gave_the_pictures(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    write(store, "old", embedding())
    store.write("new", embedding(), fps=2, source_hash="x", fingerprint="aaaa", decoder=2)
    assert (store.stored("old").decoder, store.stored("new").decoder) == (FIRST_DECODER, 2)
    with safe_open(tmp_path / "new.safetensors", "np") as file:
        assert file.metadata()["decoder"] == "2"


def test_videos_of_an_earlier_decoder_are_listed_until_they_are_compared(store: EmbeddingStore) -> None:
    assert store.unchecked(2) == []
    for video_id in ("a", "b", "c"):
        write(store, video_id, embedding())
    store.write("d", embedding(), fps=2, source_hash="x", fingerprint="aaaa", decoder=2)
    store.commit()
    assert store.unchecked(2) == ["a", "b", "c"]
    store.note_alike(["a"], 2)
    store.note_alike(["c"], 2)
    assert (store.alike(2), store.unchecked(2)) == ({"a", "c"}, ["b"])
    assert (store.alike(3), store.unchecked(3)) == (set(), ["a", "b", "c", "d"])
    store.note_alike([], 3)
    assert store.alike(2) == {"a", "c"}


def test_bad_requests_are_one_sentence(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    write(store, "a", embedding())
    for span in [(-1, 3), (0, 8), (5, 4)]:
        with pytest.raises(DataError, match=r"'a' must lie within the 7 frames of its embedding in"):
            store.read("a", *span)
    with pytest.raises(DataError, match="'b' has no embedding in"):
        store.read("b")
    with pytest.raises(DataError, match=r"shape \[7, 6\]"):
        write(store, "b", embedding().reshape(7, 6))
    with pytest.raises(DataError, match="not finite"):
        write(store, "b", np.full((2, 1, 1), 1e6))
    for video_id in ("", "half an emoji \ud83d"):
        with pytest.raises(DataError, match="must be text of one or more whole characters"):
            write(store, video_id, embedding())
    with pytest.raises(DataError, match=r"root \(nowhere://x"):
        EmbeddingStore("nowhere://x")


def test_a_file_cut_short_is_damaged_not_short(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    write(store, "a", embedding())
    path = tmp_path / "a.safetensors"
    whole = path.read_bytes()
    for length in (0, 4, 50, len(whole) - 2):
        path.write_bytes(whole[:length])
        assert not store.has("a", "hash of a", "aaaa")
        with pytest.raises(DataError, match=r"a\.safetensors is damaged"):
            store.read("a")
    write(EmbeddingStore(tmp_path), "a", embedding())
    np.testing.assert_array_equal(store.read("a"), embedding())


def test_a_process_that_dies_while_writing_leaves_no_video(tmp_path: Path) -> None:
    old, new = tmp_path / ".1234.partial", tmp_path / ".5678.partial"
    old.write_bytes(b"half of a file")
    new.write_bytes(b"half of a file that another job is writing")
    os.utime(old, (0, 0))
    store = EmbeddingStore(tmp_path)
    assert store.video_ids() == []
    write(store, "a", embedding())
    assert [row.video_id for row in store.finish({"a": "a.mp4"}, {})] == ["a"]
    assert not old.exists()
    assert new.exists()
