"""Annotations -> DST labels with Ray Data: every dialogue is placed on its video's frames, checked and counted."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import ray.data

from prospect.cluster.job import connect
from prospect.data.labels.report import DialogueLabels, LabelReport, summarize
from prospect.data.labels.table import to_tsv
from prospect.data.sources import Corpus, DataSettings, QuarantinedRecord, load_dialogues, place_all, to_jsonl
from prospect.dialogue.schema import Dialogue
from prospect.errors import DataError
from prospect.files import open_filesystem, write_file

DIALOGUES_PER_BLOCK = 256


def label(data: DataSettings, root: str, frames: Mapping[str, int] | None = None) -> LabelReport:
    """Labels a source and writes `labels/` under `root`: dialogues.jsonl, labels.tsv and report.json.

    Args:
        data: the source.
        root: absolute path or URL (anything that pyarrow opens) of the storage root.
        frames: T by video id, from the embedding manifest where there is one; other videos get theirs from
            the source's duration.

    Raises:
        DataError: the source cannot be read, or holds nothing that can be used.
        ConfigError: an unknown source, data set or held-out video.
    """
    corpus = load_dialogues(data)
    if not corpus.dialogues:
        why = f": {corpus.quarantined[0]}" if corpus.quarantined else ""
        raise DataError(f"data.path: {data.path} holds no dialogue that can be used{why}", field="data.path")
    report = _label(corpus, frames or {})
    _write(root, "dialogues.jsonl", to_jsonl(corpus.dialogues))
    _write(root, "labels.tsv", to_tsv(corpus.dialogues))
    _write(root, "report.json", report.to_json())
    return report


def _label(corpus: Corpus, frames: Mapping[str, int]) -> LabelReport:
    rows = [
        {"index": index, "dialogue": dialogue.model_dump_json(), "frames": frames.get(dialogue.video_id, 0)}
        for index, dialogue in enumerate(corpus.dialogues)
    ]
    connect()
    blocks = math.ceil(len(rows) / DIALOGUES_PER_BLOCK)
    placed = ray.data.from_items(rows, override_num_blocks=blocks).map(_place).take_all()
    labelled, events = [], []
    for row in sorted(placed, key=lambda row: row["index"]):
        result = json.loads(row["result"])
        labelled.append((corpus.dialogues[row["index"]], DialogueLabels(**result["labels"])))
        events += [QuarantinedRecord(**event) for event in result["quarantined"]]
    return summarize(labelled, corpus.quarantined, events)


def _place(row: dict[str, Any]) -> dict[str, Any]:
    """One dialogue; the result travels as JSON, because an Arrow column has no type for an empty list."""
    dialogue = Dialogue.model_validate_json(row["dialogue"])
    [(_, timeline)], quarantined = place_all([dialogue], lambda _: row["frames"] or None)
    result = {"labels": asdict(DialogueLabels.of(timeline)), "quarantined": [asdict(event) for event in quarantined]}
    return {"index": row["index"], "result": json.dumps(result)}


def _write(root: str, name: str, text: str) -> None:
    filesystem, base = open_filesystem(root)
    write_file(filesystem, f"{base}/labels/{name}", text.encode())
