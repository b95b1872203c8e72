"""The licence of a base is what its own files state, and else unknown."""

from pathlib import Path

import pytest

from prospect.model.licence import NO_BASE, licence_in, licence_of_base


@pytest.mark.parametrize(
    ("files", "licence"),
    [
        ({"README.md": "---\nlicense: apache-2.0\ntags: [x]\n---\n# Model"}, "apache-2.0"),
        ({"README.md": "---\nlicense: other\nlicense_name: gemma\n---\n"}, "gemma"),
        ({"README.md": "# no head\nlicense: mit", "LICENSE": "\n  MIT License\n\nCopyright"}, "MIT License"),
        ({"README.md": "---\n: [broken\n---\n"}, "unknown"),
        ({"README.md": "---\n- a list\n---\n", "LICENCE.txt": ""}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_the_licence_is_what_the_folder_says(files: dict[str, str], licence: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert licence_in(tmp_path) == licence
    assert licence_of_base(str(tmp_path), tmp_path / "cache") == licence


@pytest.mark.parametrize(
    ("base", "licence"),
    [("tiny", NO_BASE), ("tiny:smolvlm", NO_BASE), ("package:smollm2_135m", "unknown"), ("no/such-model", "unknown"),
     ("not a name of the hub!", "unknown")],
)  # fmt: skip
def test_a_base_without_a_folder(base: str, licence: str, tmp_path: Path) -> None:
    assert licence_of_base(base, tmp_path) == licence
