"""Paths and URLs are one thing to everybody who reads or writes files."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from prospect.errors import DataError
from prospect.files import open_filesystem, write_file


@pytest.mark.parametrize("scheme", ["", "file://", "local://"])
def test_a_path_and_its_urls_are_the_same_file(scheme: str, tmp_path: Path) -> None:
    filesystem, folder = open_filesystem(f"{scheme}{tmp_path}/deep")
    write_file(filesystem, f"{folder}/a.txt", b"hello")
    assert (tmp_path / "deep" / "a.txt").read_bytes() == b"hello"


def test_a_file_system_of_fsspec_will_do() -> None:
    filesystem, folder = open_filesystem("memory://bucket/labels")
    write_file(filesystem, f"{folder}/a.txt", b"hello")
    assert fsspec.filesystem("memory").cat("/bucket/labels/a.txt") == b"hello"


def test_an_unknown_scheme_is_one_sentence() -> None:
    with pytest.raises(DataError, match=r"root \(nowhere://bucket\) must be"):
        open_filesystem("nowhere://bucket")


def test_a_file_that_is_not_finished_is_not_there(tmp_path: Path) -> None:
    def parts() -> Iterator[bytes]:
        yield b"half of it"
        raise RuntimeError("power cut")

    filesystem, folder = open_filesystem(tmp_path)
    with pytest.raises(RuntimeError, match="power cut"):
        write_file(filesystem, f"{folder}/a.txt", parts())
    assert not [*tmp_path.iterdir()]
