"""Counts of a run's training data: videos, dialogues, clips and tokens by data set and split."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from prospect.data.clips import Clip
from prospect.data.embeddings import EmbeddingStore
from prospect.data.prepare import Records

Counts = dict[str, int]


def dataset_manifest(
    records: Records, store: EmbeddingStore, clips: dict[str, Sequence[Clip]], quarantined: int
) -> dict[str, Any]:
    """JSON with the fingerprints of records and embeddings, and `datasets`: data set -> split -> counts.

    Args:
        records: of all splits.
        store: embeddings of their videos.
        clips: by split.
        quarantined: records and events that were left out.
    """
    counts: dict[str, dict[str, Counts]] = defaultdict(dict)
    for split, made in clips.items():
        placed = records.split(split)
        for name in sorted({dialogue.dataset for dialogue, _ in placed}):
            counts[name][split] = _count([d.video_id for d, _ in placed if d.dataset == name], store) | _count_clips(
                [clip for clip in made if clip.dialogue.dataset == name]
            )
    return {
        "records": records.fingerprint,
        "embeddings": store.fingerprint,
        "quarantined": quarantined,
        "datasets": dict(counts),
    }


def _count(video_ids: Sequence[str], store: EmbeddingStore) -> Counts:
    videos = set(video_ids)
    return {
        "videos": len(videos),
        "dialogues": len(video_ids),
        "frames": sum(store.num_frames(video) for video in videos),
    }


def _count_clips(clips: Sequence[Clip]) -> Counts:
    return {"clips": len(clips), "tokens": sum(clip.num_tokens or 0 for clip in clips)}
