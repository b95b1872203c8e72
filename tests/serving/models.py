"""A model folder as training writes it, of random weights, with the encoder that it says it was trained on."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from prospect.model.checkpoint import save_model
from prospect.vision.encoder import load_encoder
from prospect.vision.settings import VisionSettings
from tests import factories
from tests.factories import TINY, claim_trained, random_model, tiny_vocabulary

VISION = VisionSettings(model="prospect-tiny", weights="random:0", image_size=64)
CONTEXT = factories.CONTEXT.model_copy(update={"max_utterance_tokens": 8})
SEED = 32
"""A model that repeats one whole letter; others write halves of characters, which are no text to send in pieces."""
STEPS = ("boil water", "pour water", "add milk")
ALWAYS, NEVER = {"speak": 0.0, "update": 0.0}, {"speak": 1.0, "update": 1.0}
"""Thresholds that make a random model act at every frame, or at none."""


def write_model(folder: Path, fingerprint: str | None = None) -> Path:
    encoder = load_encoder(VISION)
    settings = TINY.model_copy(update={"name": "tests"})
    vocabulary = tiny_vocabulary()
    encoded_by = fingerprint or encoder.fingerprint
    model = random_model(settings, vocabulary, SEED, encoder.dim, encoder.tokens_per_frame, encoded_by)
    claim_trained(model)
    extra = {"vision": VISION.model_dump(mode="json"), "context": CONTEXT.model_dump(mode="json")}
    save_model(model, vocabulary.tokenizer, settings, folder, extra)
    return folder


def picture(seed: int, kind: str = "PNG") -> bytes:
    """A small picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()
