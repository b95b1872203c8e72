"""A model folder that can be served: random weights that speak when a picture says so, in utterances of known length.

As the engine benchmark's model (`prospect.benchmarks.engine.model`), but everything that is planted is saved: the
digit of every utterance comes from the embedding matrix, which `lm_head` shares, and not from a bias.
"""

from pathlib import Path

import torch

from prospect.benchmarks.engine.model import DIGIT, plant_decision
from prospect.benchmarks.serve.footage import Footage, draw_footage
from prospect.config.schema import Config
from prospect.dialogue.prompt import SYSTEM_PROMPT
from prospect.dialogue.vocabulary import Vocabulary
from prospect.model.adapters import build_model, build_tokenizer
from prospect.model.checkpoint import save_model
from prospect.model.interface import DSTModel
from prospect.model.settings import HEADS
from prospect.vision.encoder import load_encoder

FOOTAGE = "footage.npz"
_COMMON, _DIGIT = 1e3, 1e4
"""What every token has of the planted direction, and what the digit has: it wins wherever a token was read."""


def write_model(config: Config, folder: Path, utterance_tokens: int) -> Footage:
    """Write the configured model, with the pictures that it is served, below `folder`.

    Raises:
        CheckpointError: the base or the encoder cannot be loaded.
    """
    encoder = load_encoder(config.vision, "cpu")
    footage = draw_footage(encoder)
    settings = config.model.model_copy(update={"adaptation": "full"})
    cache = Path(config.storage.root) / "cache"
    tokenizer = build_tokenizer(settings, [SYSTEM_PROMPT] * 10, cache)
    model = build_model(
        settings,
        tokenizer,
        vision_dim=encoder.dim,
        tokens_per_frame=encoder.tokens_per_frame,
        fingerprint=encoder.fingerprint,
        cache=cache,
    )
    _plant(model, Vocabulary(tokenizer, model.config.stop_ids or ()), footage)
    model.config.trained_steps = dict.fromkeys(HEADS, 1)
    context = config.context.model_copy(update={"max_utterance_tokens": utterance_tokens})
    extra = {"vision": config.vision.model_dump(mode="json"), "context": context.model_dump(mode="json")}
    save_model(model, tokenizer, settings, folder, extra)
    footage.save(folder / FOOTAGE)
    return footage


@torch.no_grad()
def _plant(model: DSTModel, vocabulary: Vocabulary, footage: Footage) -> None:
    first = torch.zeros(footage.embeddings.shape[2])
    first[0] = 1
    decision = plant_decision(model, first, footage.threshold)
    embedding: torch.Tensor = model.lm_head.weight  # the input's as well
    axis = (decision + 1) % embedding.shape[1]
    embedding[:, axis] = _COMMON
    (digit,) = vocabulary.encode(DIGIT)
    embedding[digit, axis] = _DIGIT
