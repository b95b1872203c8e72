"""suite=evaluate on a small scale: both stages, and what their rows say."""

import json
from pathlib import Path

import pytest

from prospect.benchmarks.config import BenchmarkConfig
from prospect.benchmarks.evaluate.suite import to_markdown
from prospect.benchmarks.suites import run_suite
from prospect.config.load import load


def test_both_stages_measure_against_their_alternative(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["stages=[encoder,matcher]", "rounds=1", "sentences=6", "videos=2", "frames=60", "utterances=9"]
    overrides = ["suite=evaluate", f"storage.root={tmp_path}", *(f"suite.{setting}" for setting in small)]
    run_suite(load("benchmark", overrides, BenchmarkConfig))
    stages = json.loads((tmp_path / "benchmarks" / "evaluate.json").read_text())["stages"]
    encoder, matcher = (stages[name]["rows"] for name in ("encoder", "matcher"))
    assert [row["ratio"] for row in (encoder[0], matcher[0])] == [1, 1]
    assert encoder[1]["largest difference"] == 0  # int8
    assert [row["form"] for row in matcher] == ["compat", "corrected"]
    assert all(row["p95 ms"] >= row["p50 ms"] > 0 for row in matcher)
    assert "2 videos of 60 frames with 9 utterances" in capsys.readouterr().out


def test_a_table_has_numbers_that_can_be_read() -> None:
    rows = [{"way": "a", "number": 12345.6, "small": 1.23e-7, "none": None}, {"way": "b", "number": 9.87, "small": 0.5}]
    assert to_markdown(rows).splitlines()[2:] == ["| a | 12,346 | 1.2e-07 |  |", "| b | 9.9 | 0.5 |"]
