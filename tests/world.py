"""A small world to train on: dialogues of two steps about random embeddings, and a model of two layers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from prospect.data.batches import Collator
from prospect.data.clips import Clip, split_clips
from prospect.data.embeddings import EmbeddingStore
from prospect.data.settings import ClipSettings, LabelSamplingSettings
from prospect.dialogue.prompt import ContextSettings
from prospect.dialogue.schema import Dialogue, Step, Turn
from prospect.dialogue.sequence import SequenceBuilder
from prospect.dialogue.timeline import num_frames, place
from prospect.dialogue.vocabulary import Vocabulary
from prospect.hashing import derived_seed
from prospect.model.adapters import build_model, build_tokenizer
from prospect.model.llama import DSTProActLlamaForCausalLM
from prospect.model.settings import ModelSettings, TinyGeometry

DIM = 8
CONTEXT = ContextSettings(max_seq_len=512, max_context_tokens=400)
BRIEF = CONTEXT.model_copy(update={"max_utterance_tokens": 4, "max_delta_tokens": 4})
"""For a random model, which babbles."""
MODEL = ModelSettings(
    adaptation="full",
    tiny=TinyGeometry(hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, vocab_size=400),
)


def dialogue(number: int) -> Dialogue:
    """Number `number` of a series; lengths and times differ."""
    half = 0.5 * (number % 5)
    return Dialogue(
        dataset="toy",
        video_id=f"v{number}",
        dialogue_id=f"v{number}#0",
        goal="make tea",
        steps=(
            Step(id="S1", name="boil water", start=1 + half, end=4 + half),
            Step(id="S2", name="pour it", start=5 + half, end=8 + half),
        ),
        turns=(
            Turn(role="user", time=0.5, text="Hello"),
            Turn(role="assistant", time=1 + half, text="Boil water."),
            Turn(role="assistant", time=5 + half, text="Now pour it."),
        ),
        duration=9.0 + half,
    )


def without_steps(d: Dialogue) -> Dialogue:
    return d.model_copy(update={"steps": ()})


def clip_of(d: Dialogue, vocabulary: Vocabulary) -> Clip:
    timeline = place(d, num_frames(d.duration or 0))
    [clip] = split_clips(d, timeline, SequenceBuilder(vocabulary, CONTEXT, 1), ClipSettings(random_start_share=0))
    return clip


def frames(video_id: str, start: int, stop: int) -> np.ndarray:
    whole = np.random.default_rng(derived_seed(video_id)).standard_normal((40, 1, DIM))
    return whole[start:stop].astype(np.float16)


@dataclass
class World:
    clips: list[Clip]
    vocabulary: Vocabulary
    tokenizer: object

    def model(self, **changes: object) -> DSTProActLlamaForCausalLM:
        settings = MODEL.model_copy(update=changes)
        return build_model(
            settings, self.tokenizer, vision_dim=DIM, tokens_per_frame=1, fingerprint="f", cache=Path("/nonexistent")
        )

    def collate(
        self, sampling: LabelSamplingSettings | None = None, read: Callable[..., np.ndarray] = frames
    ) -> Collator:
        return Collator(SequenceBuilder(self.vocabulary, CONTEXT, 1), read, sampling)


def stored(world: World, folder: Path) -> EmbeddingStore:
    """The frames of all clips' videos, as an embedding job leaves them."""
    store = EmbeddingStore(folder)
    for clip in world.clips:
        video = clip.dialogue.video_id
        store.write(video, frames(video, 0, 40), fps=2, source_hash="none", fingerprint="f")
    return store


@pytest.fixture(scope="session")
def world() -> World:
    dialogues = [dialogue(number) for number in range(8)]
    texts = [text for d in dialogues for text in (d.goal, *d.step_names, *(turn.text for turn in d.turns))]
    tokenizer = build_tokenizer(MODEL, texts, Path("/nonexistent"))
    vocabulary = Vocabulary(tokenizer)
    return World([clip_of(d, vocabulary) for d in dialogues], vocabulary, tokenizer)
