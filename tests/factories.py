"""Small real things that many tests need: a dialogue with everything in it, a tiny model, its features."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prospect.data.batches import Collator
from prospect.data.clips import Clip, split_clips, whole_clip
from prospect.data.settings import ClipSettings, LabelSamplingSettings
from prospect.dialogue.prompt import ContextSettings
from prospect.dialogue.schema import Dialogue, Step, Turn
from prospect.dialogue.sequence import SequenceBuilder
from prospect.dialogue.timeline import Timeline, num_frames, place
from prospect.dialogue.vocabulary import Vocabulary
from prospect.model.adapters import build_model
from prospect.model.checkpoint import LoadedModel
from prospect.model.settings import HEADS, DecisionBackend, ModelSettings, TinyGeometry
from prospect.model.tokenizer import fit_tokenizer

DIM = 16
CONTEXT = ContextSettings(max_seq_len=640, max_context_tokens=256, max_utterance_tokens=24, max_delta_tokens=40)


def tea_dialogue(name: str = "tea") -> Dialogue:
    """30 s, three steps (two of them meet at 12 s), a question at 14.3 s, a correction."""
    return Dialogue(
        dataset="sample",
        video_id=name,
        dialogue_id=f"{name}#0",
        goal="Make tea",
        knowledge="Make tea\n1. boil water\n2. pour water\n3. add milk",
        steps=(
            Step(id="S1", name="boil water", start=3.0, end=12.0),
            Step(id="S2", name="pour water", start=12.0, end=19.5),
            Step(id="S3", name="add milk", start=22.0, end=27.5),
        ),
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


def texts_of(dialogues: Sequence[Dialogue]) -> list[str]:
    return [turn.text for d in dialogues for turn in d.turns] + [step.name for d in dialogues for step in d.steps]


def tiny_vocabulary() -> Vocabulary:
    return Vocabulary(fit_tokenizer(texts_of([tea_dialogue()]) * 10, 512))


def tiny_model(
    vocabulary: Vocabulary, backend: DecisionBackend = "heads", seed: int = 0, trained: bool = True, layers: int = 2
) -> LoadedModel:
    """A random tiny model in evaluation mode; `trained` claims that its heads were."""
    settings = ModelSettings(
        adaptation="full",
        decision_backend=backend,
        tiny=TinyGeometry(hidden_size=64, intermediate_size=128, num_layers=layers, num_heads=4, vocab_size=512),
    )
    model = build_model(
        settings,
        vocabulary.tokenizer,
        vision_dim=DIM,
        tokens_per_frame=1,
        fingerprint="tests",
        cache=Path(),
        seed=seed,
    )
    model.config.trained_steps = dict.fromkeys(HEADS, 1) if trained else {}
    return LoadedModel(model.eval(), vocabulary, Path("tiny"), {"model": settings.model_dump()})


def features(video_id: str, start: int, stop: int) -> np.ndarray:
    """Random but fixed float16 features [stop - start, 1, DIM] of a video that is up to 400 frames long."""
    seed = int.from_bytes(video_id.encode()[:7], "big")
    return np.random.default_rng(seed).standard_normal((400, 1, DIM)).astype(np.float16)[start:stop]


def collator(vocabulary: Vocabulary, sampling: LabelSamplingSettings | None = None, packed: bool = True) -> Collator:
    return Collator(SequenceBuilder(vocabulary, CONTEXT, 1), features, sampling, packed)


def tea_clip(context: ContextSettings = CONTEXT) -> Clip:
    dialogue = tea_dialogue()
    return whole_clip(dialogue, timeline_of(dialogue), context)


def tea_clips(
    vocabulary: Vocabulary, context: ContextSettings, random_start_share: float = 0.0, summaries: bool = False
) -> list[Clip]:
    """With `summaries` each clip ends with one."""
    dialogue = with_progress(tea_dialogue())
    settings = ClipSettings(random_start_share=random_start_share, summaries=summaries, summary_share=1.0)
    return split_clips(dialogue, timeline_of(dialogue), SequenceBuilder(vocabulary, context, 1), settings)
