"""Sources on any file system, and files larger than what is read at a time."""

import gzip
import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prospect.data.sources import DataSettings, load_dialogues
from prospect.data.sources import files as source_files
from prospect.errors import DataError

RECORDS = {v: {"dataset": "home", "turns": [{"time": 1, "role": "user", "text": "Hi"}]} for v in ("v1", "v2")}


def everywhere(tmp_path: Path, files: dict[str, bytes]) -> list[str]:
    """The same files under a local path, a file URL and a URL of fsspec's own."""
    memory = fsspec.filesystem("memory")
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
        memory.pipe(f"{tmp_path}/{name}", data)
    return [str(tmp_path), f"file://{tmp_path}", f"memory:/{tmp_path}"]


def test_records_and_videos_may_lie_behind_a_url(tmp_path: Path) -> None:
    for root in everywhere(tmp_path, {"home/dialogues.json": json.dumps(RECORDS).encode(), "home/a/v1.mp4": b""}):
        corpus = load_dialogues(DataSettings(source="folder", path=f"{root}/home/"))
        assert [d.video_id for d in corpus.dialogues] == ["v1", "v2"]
        assert corpus.videos == {"v1": f"{root}/home/a/v1.mp4"}
        alone = load_dialogues(DataSettings(source="folder", path=f"{root}/home/dialogues.json"))
        assert alone.videos == corpus.videos


def test_a_tree_and_compressed_lines_may_lie_behind_a_url(tmp_path: Path) -> None:
    talk = {"conversation": [{"role": "user", "time": 1, "content": "Hi"}]}
    videos = json.dumps([{"video_uid": "T1", "conversations": [talk], "parsed_video_anns": {}}]).encode()
    line = json.dumps(RECORDS["v1"] | {"video_id": "v1"}).encode()
    files = {
        "wtag/generated_dialogs/train.json": videos,
        "wtag/frames/T1.arrow": b"",
        "c.jsonl.gz": gzip.compress(line),
    }
    for root in everywhere(tmp_path, files):
        tree = load_dialogues(DataSettings(source="proassist", path=root))
        assert tree.videos == {"T1": f"{root}/wtag/frames/T1.arrow"}
        lines = load_dialogues(DataSettings(source="canonical", path=root))
        assert [d.video_id for d in lines.dialogues] == ["v1"]


def test_a_missing_place_and_an_unknown_scheme_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.path: memory://nowhere does not exist"):
        load_dialogues(DataSettings(source="canonical", path="memory://nowhere"))
    with pytest.raises(DataError, match=r"root \(warp://drive"):
        load_dialogues(DataSettings(source="canonical", path="warp://drive"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(
    elements=st.lists(st.dictionaries(st.text(max_size=3), json_values, max_size=3)), indent=st.sampled_from([None, 1])
)
def test_a_list_of_any_size_comes_element_by_element(
    tmp_path_factory: pytest.TempPathFactory, elements: list[Any], indent: int | None
) -> None:
    file = tmp_path_factory.mktemp("list") / "list.json"
    file.write_text(json.dumps(elements, indent=indent), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_files, "CHUNK", 7)
        assert list(source_files.read_json(str(file))) == elements


@pytest.mark.parametrize("text", ["", "[", '[{"a": 1}', "[1 2]", "[1,]", "[]]", "[1] x", '{"a": 1} x', '[{"a": '])
def test_a_document_that_is_cut_or_followed_by_something_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "cut.json").write_text(text)
    with pytest.raises(DataError, match=r"cut\.json is not valid JSON"):
        list(source_files.read_json(str(tmp_path / "cut.json")))
