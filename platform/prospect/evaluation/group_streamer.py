"""One engine that streams groups of dialogues: what an evaluation's workers run."""

import json
from pathlib import Path
from typing import cast

import numpy as np
import torch

from prospect.data.embeddings import EmbeddingStore
from prospect.dialogue.prompt import ContextSettings
from prospect.dialogue.schema import Dialogue
from prospect.dialogue.timeline import place
from prospect.errors import ProspectError
from prospect.evaluation.decision_cache import DECISIONS, SESSIONS_PER_GROUP, Row
from prospect.evaluation.records import View
from prospect.evaluation.stream import stream_dialogues, view_of
from prospect.model.checkpoint import load_model
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.settings import StreamingSettings


class GroupStreamer:
    """Decides the dialogues of a row, as `cached_decisions` sends them."""

    def __init__(
        self, folder: Path, cache: Path, store: str, context: ContextSettings, streaming: StreamingSettings
    ) -> None:
        torch.set_num_threads(1)
        self._loaded = load_model(folder, cache=cache, device="auto")
        self._store = EmbeddingStore(store)
        self._context = context
        self._settings = streaming.model_copy(update={"max_sessions": SESSIONS_PER_GROUP, "max_waiting_frames": 10**9})

    def __call__(self, row: Row) -> Row:
        engine = StreamingEngine(self._loaded, self._context, self._settings)
        blank = self._loaded.model.mm_projector.mean_frame()
        dialogues = [Dialogue.model_validate_json(text) for text in json.loads(row["dialogues"])]
        placed = [(dialogue, place(dialogue, self._store.num_frames(dialogue.video_id))) for dialogue in dialogues]

        def read(dialogue: Dialogue, start: int, stop: int) -> np.ndarray:
            frames = self._store.read(dialogue.video_id, start, stop)
            return view_of(frames, cast(View, row["view"]), blank, dialogue.dialogue_id)

        try:
            streamed = stream_dialogues(engine, placed, read)
        except ProspectError as error:  # as a value: what an actor raises arrives as a stack trace
            return {"key": row["key"], "decisions": "", "error": str(error)}
        decisions = [DECISIONS.dump_json(list(one.decisions)).decode() for one in streamed]
        return {"key": row["key"], "decisions": json.dumps(decisions), "error": ""}
