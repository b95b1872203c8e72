"""A storage root that an earlier tree wrote (tests/fixtures/README.md), unpacked where a test can use it."""

import shutil
import sqlite3
from pathlib import Path

from prospect.config.schema import Config, StorageSettings
from prospect.data.embeddings import EmbeddingStore
from prospect.data.settings import ClipSettings
from prospect.data.sources import DataSettings
from prospect.evaluation.settings import CalibrationSettings
from prospect.streaming.settings import StreamingSettings
from prospect.training.settings import TrainingSettings
from prospect.vision.settings import VisionSettings
from tests.world import CONTEXT, MODEL

PACKED = Path(__file__).parent / "fixtures" / "root"
ROOT = "@ROOT@"


def unpack(root: Path) -> Path:
    """Copies the fixtures to `root`, as if they had been written there."""
    shutil.copytree(PACKED, root, ignore=shutil.ignore_patterns("mlflow.sql"))
    for mark in root.glob("runs/*/metrics.offset"):  # a number of bytes
        done = mark.with_name("metrics.jsonl").read_text()[: int(mark.read_text())]
        mark.write_text(str(len(done.replace(ROOT, str(root)))))
    for file in root.rglob("*"):
        if file.is_file() and ROOT.encode() in (content := file.read_bytes()):
            file.write_bytes(content.replace(ROOT.encode(), str(root).encode()))
    with sqlite3.connect(root / "mlflow.db") as database:
        database.executescript((PACKED / "mlflow.sql").read_text().replace(ROOT, str(root)))
    return root


def config_of(root: Path, run_name: str = "finished") -> Config:
    """The configuration that wrote the fixtures."""
    return Config(
        storage=StorageSettings(root=str(root)),
        data=DataSettings(source="dialogues", path=root / "dialogues.jsonl"),
        # Random weights are those of one version of torch, by which the fingerprint differs.
        vision=VisionSettings(
            model="prospect-tiny",
            weights="random:0",
            image_size=96,
            equivalent_to=(EmbeddingStore(root / "embeddings").fingerprint,),
        ),
        model=MODEL,
        training=TrainingSettings(
            run_name=run_name,
            num_workers=1,
            threads_per_worker=1,
            batch_size=3,
            micro_batch_size=1,
            max_steps=60,
            learning_rate=1e-2,
            warmup_steps=4,
            save_every=10,
            keep_checkpoints=1,
            log_every=20,
            eval_every=30,
            clips=ClipSettings(random_start_share=0),
            calibration=CalibrationSettings(grid=(0.3, 0.7), min_events=1),
        ),
        context=CONTEXT,
        streaming=StreamingSettings(dst_decoder="readout"),
    )
