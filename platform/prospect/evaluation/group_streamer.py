"""Streams groups of dialogues through the engine, in an evaluation's workers."""

import json
from typing import cast

import numpy as np
import torch

from prospect.data.embeddings import EmbeddingStore
from prospect.devices import explain_device_failure
from prospect.dialogue.schema import Dialogue
from prospect.dialogue.timeline import place
from prospect.errors import ProspectError
from prospect.evaluation.decision_cache import SESSIONS_PER_GROUP, GroupRow, StreamedModel
from prospect.evaluation.records import Variant, View
from prospect.evaluation.stream import spec_of, stream_dialogues, view_of
from prospect.evaluation.streamed import Stream
from prospect.model.checkpoint import load_model
from prospect.streaming.engine import StreamingEngine


class GroupStreamer:
    """Decides the dialogues of the rows that `cached_decisions` sends, all with one engine.

    Args:
        model: what is streamed.
        device: where it is to run.
    """

    def __init__(self, model: StreamedModel, device: str = "auto") -> None:
        torch.set_num_threads(1)
        self._loaded = load_model(model.folder, cache=model.cache, device=device)
        self._store = EmbeddingStore(model.store)
        room = {"max_sessions": SESSIONS_PER_GROUP, "max_waiting_frames": 10**9}
        # One engine for all groups: a new one would measure attention, compile and capture graphs again.
        self._engine = StreamingEngine(self._loaded, model.context, model.streaming.model_copy(update=room))

    @property
    def _about(self) -> str:
        return f"{self._engine.attention} on {self._loaded.model.device}"

    def __call__(self, row: GroupRow) -> GroupRow:
        blank = self._loaded.model.mm_projector.mean_frame()
        dialogues = [Dialogue.model_validate_json(text) for text in json.loads(row["dialogues"])]
        placed = [(dialogue, place(dialogue, self._store.num_frames(dialogue.video_id))) for dialogue in dialogues]

        variant = Variant(
            cast(View, row["view"]), *(float(row[name]) if row[name] else None for name in ("speak", "update"))
        )

        def read(dialogue: Dialogue, start: int, stop: int) -> np.ndarray:
            frames = self._store.read(dialogue.video_id, start, stop)
            return view_of(frames, variant.view, blank, f"{dialogue.video_id}/{dialogue.dialogue_id}")

        self._engine.forget_prefixes()  # what a group decides does not depend on the groups before it
        try:
            with explain_device_failure():
                streamed = stream_dialogues(self._engine, placed, read, [spec_of(*pair, variant) for pair in placed])
        except ProspectError as error:  # as a value: an exception in an actor would arrive as a stack trace
            return {"key": row["key"], "decisions": "", "error": str(error), "engine": self._about}
        decisions = [Stream.of(one).to_json() for one in streamed]
        return {"key": row["key"], "decisions": json.dumps(decisions), "error": "", "engine": self._about}
