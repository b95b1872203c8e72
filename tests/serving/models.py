"""A model folder as training writes it, of random weights, with the encoder that it says it was trained on."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from prospect.dialogue.prompt import ContextSettings
from prospect.model.adapters import build_model
from prospect.model.checkpoint import save_model
from prospect.model.settings import HEADS, ModelSettings, TinyGeometry
from prospect.vision.encoder import load_encoder
from prospect.vision.settings import VisionSettings
from tests.factories import tiny_vocabulary

VISION = VisionSettings(model="prospect-tiny", weights="random:0", image_size=64, device="cpu")
CONTEXT = ContextSettings(max_seq_len=640, max_context_tokens=256, max_utterance_tokens=8, max_delta_tokens=40)
SEED = 32
"""A model that repeats one whole letter; others write halves of characters, which are no text to send in pieces."""
STEPS = ("boil water", "pour water", "add milk")
ALWAYS, NEVER = {"speak": 0.0, "update": 0.0}, {"speak": 1.0, "update": 1.0}
"""Thresholds that make a random model act at every frame, or at none."""


def write_model(folder: Path, fingerprint: str | None = None) -> Path:
    encoder = load_encoder(VISION)
    settings = ModelSettings(
        name="tests",
        adaptation="full",
        tiny=TinyGeometry(hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4, vocab_size=512),
    )
    vocabulary = tiny_vocabulary()
    model = build_model(
        settings,
        vocabulary.tokenizer,
        vision_dim=encoder.dim,
        tokens_per_frame=encoder.tokens_per_frame,
        fingerprint=fingerprint or encoder.fingerprint,
        cache=folder,
        seed=SEED,
    )
    model.config.trained_steps = dict.fromkeys(HEADS, 1)
    extra = {"vision": VISION.model_dump(mode="json"), "context": CONTEXT.model_dump(mode="json")}
    save_model(model, vocabulary.tokenizer, settings, folder, extra)
    return folder


def picture(seed: int, kind: str = "PNG") -> bytes:
    """A small picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()
