"""One run of each job over a source whose every name means something in some grammar."""

import json
from pathlib import Path

import pytest

from prospect.check.job import check
from prospect.cli import load_config
from prospect.cluster.embed import embed
from prospect.cluster.evaluate import evaluate_and_show
from prospect.cluster.label import label_and_show
from prospect.cluster.train import train
from prospect.tracking.tracking import Tracking
from tests.vision.videos import flat_picture, write_video

pytestmark = [pytest.mark.e2e, pytest.mark.long]

DATASETS = ["home[/old]", "[red]kitchen (2024) & $5 for $6", "../up", "100% {x} 'y' \"z\"", "料理:1"]
"""Markup that closes nothing and that colours, what no metric may be called, mathtext, a parent folder, quotes."""
TEXTS = ["[bold]Stir[/] the $x^2$ {{ pot }}", "<b>Pour</b> & \\frac `it` %s"]
SMALL = [
    "training.max_steps=4", "training.warmup_steps=1", "training.num_workers=1", "training.threads_per_worker=1",
    "embedding.num_encoders=1", "data.holdout=1", "training.run_name=named",
]  # fmt: skip


def test_each_job_ends_well_and_the_names_come_back(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "vidéos [x] $1"
    folder.mkdir()
    records = {}
    for number, dataset in enumerate(DATASETS * 2):
        video = f"clip [{number}] $a$ ü"
        pictures = [flat_picture(index + number) for index in range(24)]
        write_video(folder / f"{video}.mp4", [index / 2 for index in range(24)], pictures, rate=2)
        records[video] = {
            "dataset": dataset,
            "goal": TEXTS[number % 2],
            "steps": [{"text": text, "start": 1 + 4 * at, "end": 5 + 4 * at} for at, text in enumerate(TEXTS)],
            "turns": [{"time": 5, "role": "assistant", "text": TEXTS[number % 2]}],
        }
    (folder / "dialogues.json").write_text(json.dumps(records))
    given = [f"storage.root={tmp_path / 'out [1]'}", "data=clips", f"data.path={folder}"]

    def config(job: str, *more: str):
        used = [each for each in [*given, *SMALL, *more] if each.split(".")[0].split("=")[0] in SECTIONS[job]]
        return load_config(job, used)

    check(config("check"))
    embed(config("embed"))
    label_and_show(config("label"))
    label_and_show(config("label", f"preview={next(iter(records))}"))
    result = train(config("train"))
    evaluate_and_show(config("eval", f"evaluation.model={result.model}", "streaming.update_threshold=0.5"))
    said = capsys.readouterr().out
    for dataset in DATASETS:
        assert dataset in said, dataset
    tracking = Tracking(config("eval").tracking, tmp_path / "out [1]")
    run = tracking.client.get_run(result.mlflow_run)
    assert run.info.run_name == "named"
    assert "train/loss" in run.data.metrics


SECTIONS = {
    "check": {"storage", "data", "training"},
    "embed": {"storage", "data", "embedding"},
    "label": {"storage", "data", "preview"},
    "train": {"storage", "data", "training"},
    "eval": {"storage", "data", "evaluation", "streaming"},
}
"""Of the overrides above, those that a job takes."""
