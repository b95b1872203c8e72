"""What tests build small models, corpora, stores, dialogues and sessions with.

The tea dialogue has everything in it; tests of sequences, models and the engine use one or a few of it. The toy corpus
is a series of eight short dialogues, which training runs on; tests/fixtures/ was written from it, so it stays as it is.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from prospect.data.batches import Collator
from prospect.data.clips import Clip, split_clips, whole_clip
from prospect.data.settings import ClipSettings, LabelSamplingSettings
from prospect.dialogue.prompt import ContextSettings
from prospect.dialogue.schema import Dialogue, Step, Turn
from prospect.dialogue.sequence import SequenceBuilder
from prospect.dialogue.timeline import Timeline, num_frames, place
from prospect.dialogue.vocabulary import Vocabulary
from prospect.evaluation.settings import CalibrationSettings
from prospect.hashing import derived_seed
from prospect.model.adapters import build_model, build_tokenizer
from prospect.model.checkpoint import LoadedModel
from prospect.model.interface import DSTModel
from prospect.model.settings import HEADS, DecisionBackend, ModelSettings, TinyGeometry
from prospect.model.tokenizer import fit_tokenizer
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.settings import StreamingSettings
from prospect.streaming.types import Decision, SessionSpec
from prospect.training.settings import TrainingSettings
from prospect.vision.settings import VisionSettings

if TYPE_CHECKING:
    from prospect.data.embeddings import EmbeddingStore  # with pyarrow, which a bare machine with a GPU lacks

BACKBONE = os.environ.get("PROSPECT_TEST_BACKBONE", "llama")
"""Class of the small models, by its name in the registry (docs/testing.md#backbones)."""
BASE = "tiny" if BACKBONE == "llama" else f"tiny:{BACKBONE}"
DIM = 8
"""Of an embedding."""
FINGERPRINT = "tests"
"""Of the encoder that the embeddings are said to come from."""

TINY = ModelSettings(
    base=BASE,
    adaptation="full",
    tiny=TinyGeometry(hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4, vocab_size=512),
)
CONTEXT = ContextSettings(max_seq_len=640, max_context_tokens=256, max_utterance_tokens=24, max_delta_tokens=40)

TOY_MODEL = ModelSettings(
    base=BASE,
    adaptation="full",
    tiny=TinyGeometry(hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, vocab_size=400),
)
TOY_CONTEXT = ContextSettings(max_seq_len=512, max_context_tokens=400)
TOY_VISION = VisionSettings(model="prospect-tiny", weights="random:0", image_size=96)
TOY_TRAINING = TrainingSettings(
    run_name="run",
    num_workers=1,
    threads_per_worker=1,
    batch_size=3,
    micro_batch_size=1,
    max_steps=60,
    learning_rate=1e-2,
    warmup_steps=4,
    save_every=10,
    log_every=20,
    eval_every=30,
    clips=ClipSettings(random_start_share=0),
    calibration=CalibrationSettings(grid=(0.3, 0.7), min_events=1),
)
BRIEF = TOY_CONTEXT.model_copy(update={"max_utterance_tokens": 4, "max_delta_tokens": 4})
"""For a random model, which babbles."""


# Dialogues


def recipe(*steps: tuple[str, float, float]) -> tuple[Step, ...]:
    """Steps S1, S2, ... of (name, start, end)."""
    return tuple(Step(id=f"S{n}", name=name, start=start, end=end) for n, (name, start, end) in enumerate(steps, 1))


def tea_dialogue(name: str = "tea") -> Dialogue:
    """30 s, three steps (two of them meet at 12 s), a question at 14.3 s, a correction."""
    return Dialogue(
        dataset="sample",
        video_id=name,
        dialogue_id=f"{name}#0",
        goal="Make tea",
        knowledge="Make tea\n1. boil water\n2. pour water\n3. add milk",
        steps=recipe(("boil water", 3.0, 12.0), ("pour water", 12.0, 19.5), ("add milk", 22.0, 27.5)),
        turns=(
            Turn(role="user", time=1.0, text="I want to make tea."),
            Turn(role="assistant", time=1.0, text="First, boil water."),
            Turn(role="assistant", time=12.0, text="Good. Now pour water."),
            Turn(role="user", time=14.3, text="Which cup?"),
            Turn(role="assistant", time=14.4, text="The red cup."),
            Turn(role="assistant", time=19.5, text="Next, add milk."),
            Turn(role="assistant", time=27.5, text="All done."),
        ),
        duration=30.0,
    )


def toy_dialogue(number: int) -> Dialogue:
    """Number `number` of a series of two steps each; lengths and times differ."""
    half = 0.5 * (number % 5)
    return Dialogue(
        dataset="toy",
        video_id=f"v{number}",
        dialogue_id=f"v{number}#0",
        goal="make tea",
        steps=recipe(("boil water", 1 + half, 4 + half), ("pour it", 5 + half, 8 + half)),
        turns=(
            Turn(role="user", time=0.5, text="Hello"),
            Turn(role="assistant", time=1 + half, text="Boil water."),
            Turn(role="assistant", time=5 + half, text="Now pour it."),
        ),
        duration=9.0 + half,
    )


def with_progress(dialogue: Dialogue) -> Dialogue:
    """Every assistant turn with a summary that tells it apart."""
    turns = (
        turn.model_copy(update={"progress": f"{turn.time:g} s: {turn.text}"}) if turn.role == "assistant" else turn
        for turn in dialogue.turns
    )
    return dialogue.model_copy(update={"turns": tuple(turns)})


def timeline_of(dialogue: Dialogue) -> Timeline:
    assert dialogue.duration is not None
    return place(dialogue, num_frames(dialogue.duration))


# Clips and their frames


def features(video_id: str, start: int, stop: int) -> np.ndarray:
    """Random but fixed float16 features [stop - start, 1, DIM] of a video that is up to 400 frames long."""
    whole = np.random.default_rng(derived_seed(video_id)).standard_normal((400, 1, DIM))
    return whole[start:stop].astype(np.float16)


def clips_of(
    dialogue: Dialogue, vocabulary: Vocabulary, context: ContextSettings, settings: ClipSettings | None = None
) -> list[Clip]:
    """By default each from its first frame on."""
    settings = settings or ClipSettings(random_start_share=0)
    return split_clips(dialogue, timeline_of(dialogue), SequenceBuilder(vocabulary, context, 1), settings)


def tea_clip(context: ContextSettings = CONTEXT) -> Clip:
    dialogue = tea_dialogue()
    return whole_clip(dialogue, timeline_of(dialogue), context)


def tea_clips(
    vocabulary: Vocabulary, context: ContextSettings, random_start_share: float = 0.0, summaries: bool = False
) -> list[Clip]:
    """With `summaries` each clip ends with one."""
    settings = ClipSettings(random_start_share=random_start_share, summaries=summaries, summary_share=1.0)
    return clips_of(with_progress(tea_dialogue()), vocabulary, context, settings)


def collator(
    vocabulary: Vocabulary,
    sampling: LabelSamplingSettings | None = None,
    packed: bool = True,
    context: ContextSettings = CONTEXT,
    read: Callable[..., np.ndarray] = features,
) -> Collator:
    return Collator(SequenceBuilder(vocabulary, context, 1), read, sampling, packed)


def stored(dialogues: Iterable[Dialogue], folder: Path, fingerprint: str = FINGERPRINT) -> "EmbeddingStore":
    """The features of the dialogues' videos, as an embedding job leaves them."""
    from prospect.data.embeddings import EmbeddingStore

    store = EmbeddingStore(folder)
    for dialogue in dialogues:
        rows = features(dialogue.video_id, 0, num_frames(dialogue.duration or 0))
        store.write(dialogue.video_id, rows, fps=2, source_hash="none", fingerprint=fingerprint)
    return store


# Models


def texts_of(dialogues: Iterable[Dialogue]) -> list[str]:
    return [text for d in dialogues for text in (d.goal, *d.step_names, *(turn.text for turn in d.turns))]


def tiny_vocabulary() -> Vocabulary:
    dialogue = tea_dialogue()
    texts = [turn.text for turn in dialogue.turns] + list(dialogue.step_names)
    return Vocabulary(fit_tokenizer(texts * 10, 512))


def random_model(
    settings: ModelSettings,
    vocabulary: Vocabulary,
    seed: int = 0,
    vision_dim: int = DIM,
    tokens_per_frame: int = 1,
    fingerprint: str = FINGERPRINT,
) -> DSTModel:
    """A model without a base, whose heads are untrained."""
    return build_model(
        settings,
        vocabulary.tokenizer,
        vision_dim=vision_dim,
        tokens_per_frame=tokens_per_frame,
        fingerprint=fingerprint,
        cache=Path("/nonexistent"),
        seed=seed,
    )


def claim_trained(model: DSTModel) -> None:
    """Makes a model whose heads are random pass for a trained one."""
    model.config.trained_steps = dict.fromkeys(HEADS, 1)


def tiny_model(
    vocabulary: Vocabulary, backend: DecisionBackend = "heads", seed: int = 0, trained: bool = True, layers: int = 2
) -> LoadedModel:
    """A random tiny model in evaluation mode; `trained` claims that its heads were."""
    tiny = TINY.tiny.model_copy(update={"num_layers": layers})
    settings = TINY.model_copy(update={"decision_backend": backend, "tiny": tiny})
    model = random_model(settings, vocabulary, seed)
    if trained:
        claim_trained(model)
    return LoadedModel(model.eval(), vocabulary, Path("tiny"), {"model": settings.model_dump()})


# Training


@dataclass
class ToyCorpus:
    """The clips of eight toy dialogues, one each, and the vocabulary of their texts."""

    clips: list[Clip]
    vocabulary: Vocabulary

    @property
    def dialogues(self) -> list[Dialogue]:
        return [clip.dialogue for clip in self.clips]

    def model(self, **changes: object) -> DSTModel:
        return random_model(TOY_MODEL.model_copy(update=changes), self.vocabulary)

    def collator(
        self, sampling: LabelSamplingSettings | None = None, read: Callable[..., np.ndarray] = features
    ) -> Collator:
        return collator(self.vocabulary, sampling, context=TOY_CONTEXT, read=read)

    def save_tokenizer(self, run: Path) -> None:
        """Where the workers of a run look for it."""
        self.vocabulary.tokenizer.save_pretrained(run / "tokenizer")


@pytest.fixture(scope="session")
def toys() -> ToyCorpus:
    dialogues = [toy_dialogue(number) for number in range(8)]
    vocabulary = Vocabulary(build_tokenizer(TOY_MODEL, texts_of(dialogues), Path("/nonexistent")))
    return ToyCorpus([clip for d in dialogues for clip in clips_of(d, vocabulary, TOY_CONTEXT)], vocabulary)


# Sessions

SETTINGS = StreamingSettings(cooldown_frames=0, speak_hysteresis=None)
TALKATIVE = SETTINGS.model_copy(update={"speak_threshold": 0.52, "update_threshold": 0.51})
"""Random weights decide anywhere; these thresholds make a random model act on some frames."""
TEA = SessionSpec(goal=tea_dialogue().goal, steps=tea_dialogue().step_names, knowledge=tea_dialogue().knowledge)
SHORT_TEA = replace(TEA, knowledge="")
"""The same session, whose context is shorter."""


def stream(
    engine: StreamingEngine, session_id: str, video: str, frames: Iterable[int], texts: Mapping[int, str] | None = None
) -> None:
    """Push frames of a video, each after the text that belongs to it."""
    for frame in frames:
        if texts and frame in texts:
            engine.push_text(session_id, texts[frame])
        engine.push_frame(session_id, features(video, frame, frame + 1)[0])


def run(engine: StreamingEngine) -> dict[str, list]:
    """Events by session, until nothing waits."""
    events: dict[str, list] = {}
    while engine.has_work():
        for session_id, event in engine.step():
            events.setdefault(session_id, []).append(event)
    return events


def decisions(events: Sequence) -> list[Decision]:
    return [event for event in events if isinstance(event, Decision)]
