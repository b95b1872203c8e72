"""suite=embed on a small scale: every part and every rival runs, and the shares are what they are called."""

import json
from pathlib import Path

import pytest

from prospect.benchmarks.config import BenchmarkConfig
from prospect.benchmarks.suites import run_suite
from prospect.config.load import load


@pytest.mark.e2e
@pytest.mark.long
def test_the_embed_suite_measures_every_part_and_rival(tmp_path: Path) -> None:
    small = ["num_videos=2", "video_seconds=20", "rounds=1", "probe_seconds=0.5", "batch_size=4"]
    tiny = ["backend=open_clip", "model=prospect-tiny", "image_size=64"]
    overrides = [f"suite.{setting}" for setting in small + tiny]
    run_suite(load("benchmark", ["suite=embed", f"storage.root={tmp_path}", *overrides], BenchmarkConfig))
    result = json.loads((tmp_path / "benchmarks" / "embed.json").read_text())
    shared = result["rounds"][0]
    assert shared["bound"] == pytest.approx(1 / (1 / shared["encoder"] + 1 / shared["decoder"]))
    assert shared["share"] == pytest.approx(shared["pipeline"] / shared["bound"])
    assert set(result["rivals"]) == {"every frame decoded, resized and dropped", "one video after another"}
    for rates in result["rivals"].values():
        assert rates["with_start"] > 0
        assert rates["steady"] > 0
