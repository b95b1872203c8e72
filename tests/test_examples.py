"""The notebook of examples/, cell by cell, on a storage root that an earlier tree wrote; e2e/ runs the scripts."""

import json
from pathlib import Path

import matplotlib
import pytest

from tests.conftest import REPOSITORY
from tests.earlier import unpack


def test_the_notebook_shows_a_model_s_decisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    matplotlib.use("agg")
    notebook = json.loads((REPOSITORY / "examples" / "decisions.ipynb").read_text())
    assert not any(cell.get("outputs") for cell in notebook["cells"]), "outputs are not committed"
    unpack(tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]).replace('RUN = "default"', 'RUN = "finished"'), names)
    decisions, frames = names["decisions"], names["frames"]
    assert isinstance(decisions, list)
    assert len(decisions) == len(frames) > 0  # type: ignore[arg-type]
