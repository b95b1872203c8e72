"""A storage root that an earlier tree wrote (tests/fixtures/README.md), unpacked where a test can use it."""

import shutil
import sqlite3
from pathlib import Path

from prospect.config.schema import Config, StorageSettings
from prospect.data.embeddings import EmbeddingStore
from prospect.data.sources import DataSettings
from prospect.streaming.settings import StreamingSettings
from tests.factories import TOY_CONTEXT, TOY_MODEL, TOY_TRAINING, TOY_VISION

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
        vision=TOY_VISION.model_copy(update={"equivalent_to": (EmbeddingStore(root / "embeddings").fingerprint,)}),
        model=TOY_MODEL,
        training=TOY_TRAINING.model_copy(update={"run_name": run_name, "keep_checkpoints": 1}),
        context=TOY_CONTEXT,
        streaming=StreamingSettings(dst_decoder="readout"),
    )
