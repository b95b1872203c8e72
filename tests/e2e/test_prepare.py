"""From ProAssist's released tree to labels on imported features: the jobs as a user calls them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from prospect.data.embeddings import EmbeddingStore
from prospect.data.sources import DataSettings, file_stem, load_dialogues
from tests.conftest import REPOSITORY
from tests.data.labels.llm.videos import right_answer
from tests.llm.misbehaving import KEY, KEY_VARIABLE, serve
from tests.vision.test_features import write_features

pytestmark = pytest.mark.e2e

ENCODER = "google___siglip-so400m-patch14-384@-2"
SPLIT = {"assembly101": "train", "holoassist": "val"}
FRAMES = {"assembly101": 1260, "holoassist": 478}


@pytest.fixture(scope="module")
def tree(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two real records in the official layout, with features of their lengths."""
    root = tmp_path_factory.mktemp("tree") / "processed_data"
    records = json.loads((shared_data / "proassist/proassist_generated_records.json").read_text())
    for record in records:
        dataset = record["parsed_video_anns"]["dataset"]
        if dataset in SPLIT:
            dialogs = root / dataset / "generated_dialogs"
            dialogs.mkdir(parents=True)
            (dialogs / f"{SPLIT[dataset]}_filtered.json").write_text(json.dumps([record]))
            random = np.random.default_rng(0)
            frames = {name: random.standard_normal((FRAMES[dataset], n, 8)) for name, n in (("cls", 1), ("2x2", 4))}
            stem = file_stem(dataset, record["video_uid"])
            features = {name: values.astype(np.float16) for name, values in frames.items()}
            write_features(root / dataset / "features" / ENCODER / f"{stem}.arrow", features, 500)
    return root


def run(job: str, tree: Path, storage: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    options = ("data=proassist", f"data.path={tree}", "data.suffix=_filtered", f"storage.root={storage}")
    return subprocess.run(
        [sys.executable, f"jobs/{job}.py", *options, *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"COLUMNS": "140"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_released_tree_becomes_embeddings_labels_and_a_page(tree: Path, tmp_path: Path) -> None:
    imported = run("embed", tree, tmp_path, f"embedding.import_features={ENCODER}", "vision.tokens_per_frame=5")
    assert imported.returncode == 0, imported.stderr
    store = EmbeddingStore(tmp_path / "embeddings")
    assert {video: (store.num_frames(video), store.tokens_per_frame) for video in store.video_ids()} == {
        "R208-11Nov-ATV": (478, 5),
        "assembly_nusar-2021_action_both_9026-b04b_9026_user_id_2021-02-03_163855__HMC_21179183_mono10bit": (1260, 5),
    }

    dialogues = json.loads((tmp_path / "embeddings/report/dialogues.json").read_text())
    assert [(row["dataset"], row["videos"]) for row in dialogues["rows"]] == [("assembly101", 1), ("holoassist", 1)]

    labelled = run("label", tree, tmp_path)
    assert labelled.returncode == 0, labelled.stderr
    assert "assembly101" in labelled.stdout
    assert "validation" in labelled.stdout
    corpus = load_dialogues(DataSettings(source="dialogues", path=tmp_path / "labels/dialogues.jsonl"))
    assert {dialogue.split: len(dialogue.transitions()) for dialogue in corpus.dialogues} == {
        "train": 16,
        "validation": 16,
    }
    assert (tmp_path / "labels/proassist/holoassist/validation.json").is_file()
    assert (tmp_path / "labels/plots/statistics.html").is_file()

    previewed = run("label", tree, tmp_path, "preview=R208-11Nov-ATV")
    assert previewed.returncode == 0, previewed.stderr
    assert "Detach the shift arm" in (tmp_path / "labels/preview/R208-11Nov-ATV.html").read_text()

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("prospect").experiment_id])
    assert sorted(run.data.tags["prospect.job"] for run in runs) == ["embed", "label"]
    labels = next(run for run in runs if run.data.tags["prospect.job"] == "label")
    assert labels.data.metrics["data/train/assembly101/labels"] == 16
    artifacts = {file.path for file in client.list_artifacts(labels.info.run_id)}
    assert artifacts - {"uncommitted.diff"} == {"config.json", "report.json"}


@pytest.mark.long
def test_a_language_model_maps_lines_to_steps_and_is_asked_once(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with serve(right_answer) as endpoint:
        options = (
            "labels=llm",
            f"labels.llm.base_url={endpoint.base_url}",
            f"labels.llm.api_key_env={KEY_VARIABLE}",
            "labels.llm.model=tiny",
        )
        first, again = (run("label", tree, tmp_path, *options) for _ in range(2))
    assert first.returncode == again.returncode == 0, first.stderr + again.stderr
    assert "LLM mapping by tiny: 2 of 2 videos" in first.stdout
    corpus = load_dialogues(DataSettings(source="dialogues", path=tmp_path / "labels/dialogues.jsonl"))
    assert {step.source for dialogue in corpus.dialogues for step in dialogue.steps} == {"tiny"}
    assert len(list((tmp_path / "labels/llm").glob("*.json"))) == len(endpoint.bodies) == 2
    assert not any(KEY in file.read_text(errors="ignore") for file in tmp_path.rglob("*") if file.is_file())


def test_mistakes_are_one_sentence(tree: Path, tmp_path: Path) -> None:
    for job, argument, sentence in (
        ("embed", "embedding.import_features=nowhere", "'nowhere' must be one of"),
        ("label", "preview=R208", "Unknown video `R208`"),
        ("label", "data.suffix=_refined", "data.suffix"),
        ("label", "labels=llm", "OPENAI_API_KEY"),
    ):
        failed = run(job, tree, tmp_path, argument)
        assert failed.returncode == 2, failed.stderr
        assert sentence in failed.stderr
        assert "Traceback" not in failed.stderr
