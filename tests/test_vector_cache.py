"""Vectors on disk: many writers, damaged files, folders that cannot be written."""

import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from prospect.vector_cache import VectorCache


def vector(number: int) -> np.ndarray:
    return np.full(8, number, dtype=np.float32)


def write(folder: Path, start: int, stop: int) -> None:
    """One file a sentence, and what others wrote is read between them."""
    for number in range(start, stop):
        VectorCache(folder).add({f"sentence {number}": vector(number)})
        VectorCache(folder).read()


def test_a_vector_comes_back_bit_for_bit(tmp_path: Path) -> None:
    vectors = {"": np.array([np.nan, -0.0, 1e-38], np.float32), "Öl — \n eins": np.zeros(3, np.float32)}
    VectorCache(tmp_path / "new").add(vectors)
    found = VectorCache(tmp_path / "new").read()
    assert {text: array.tobytes() for text, array in found.items()} == {t: a.tobytes() for t, a in vectors.items()}


def test_writers_at_once_lose_nothing_and_many_files_become_few(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3) as pool:
        list(pool.map(write, [tmp_path] * 3, [0, 30, 60], [30, 60, 90]))
    found = VectorCache(tmp_path).read()
    assert all(np.array_equal(found[f"sentence {number}"], vector(number)) for number in range(90))
    assert len(list(tmp_path.iterdir())) < 45


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "other"])
def test_a_damaged_file_is_left_out_with_a_line(damage: str, tmp_path: Path) -> None:
    lines: list[str] = []
    VectorCache(tmp_path).add({"Pour the water.": vector(1)})
    [file] = tmp_path.iterdir()
    data = file.read_bytes()
    place = data.index(vector(1).tobytes())
    file.write_bytes({
        "cut": data[:-20], "bit": data[:place] + b"\x01" + data[place + 1 :], "empty": b"", "other": b"PAR1" * 9,
    }[damage])  # fmt: skip
    VectorCache(tmp_path).add({"Stir.": vector(2)})
    assert list(VectorCache(tmp_path, lines.append).read()) == ["Stir."]
    assert len(lines) == 1
    assert f"{file} is unreadable and not used" in lines[0]


def test_a_half_written_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / ".0123.partial").write_bytes(b"PAR1")
    assert VectorCache(tmp_path, pytest.fail).read() == {}


@pytest.mark.skipif(os.getuid() == 0 and not Path("/proc").is_dir(), reason="needs a folder that nobody can write")
def test_a_folder_that_cannot_be_written_costs_a_line() -> None:
    lines: list[str] = []
    assert not VectorCache(Path("/proc/vectors"), lines.append).add({"Stir.": vector(2)})
    assert "cannot be written" in lines[0]
