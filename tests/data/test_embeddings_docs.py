"""What docs/data.md says of the embedding store, against a store that is written."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from prospect.data.embeddings import EmbeddingStore

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
SECTION = DOCUMENT.split("## Videos and embeddings")[1].split("\n## ")[0]


def test_the_store_holds_what_the_document_names(tmp_path: Path) -> None:
    example = json.loads(SECTION.split("```json quarantine\n")[1].split("```")[0])
    store = EmbeddingStore(tmp_path)
    store.write("v/1", np.ones((3, 1, 2)), fps=2, source_hash="a", fingerprint="b")
    store.finish(
        {video: entry["path"] for video, entry in example.items()}, {v: e["reason"] for v, e in example.items()}
    )
    assert EmbeddingStore(tmp_path).quarantined() == example
    assert {file.name for file in tmp_path.iterdir()} == {"v%2F1.safetensors", "manifest.parquet", "quarantine.json"}
    named = set(re.findall(r"`(\w+)`", SECTION))
    assert {"video_id", "fps", "source_hash", "fingerprint", "content_hash"} <= named
    assert {"content_hash", "num_frames"} <= set(pq.read_table(tmp_path / "manifest.parquet").column_names)
