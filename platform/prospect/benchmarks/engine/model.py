"""A model that speaks when its frame says so, in utterances of a known length.

Random weights decide arbitrarily, so a benchmark has to force the speak rate. Nothing in the engine knows of it: the
projector gives the first number of a frame's features, +1 or -1, a direction of its own in the residual stream, the
speaking head reads that direction, and a bias on `lm_head` writes one digit again and again. Every matrix is still
multiplied, every head and every logit is still computed.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from prospect.benchmarks.engine.settings import EngineSuite
from prospect.dialogue.prompt import SYSTEM_PROMPT
from prospect.dialogue.vocabulary import GRAMMAR_TOKENS, Vocabulary
from prospect.model.adapters import build_model, build_tokenizer
from prospect.model.checkpoint import LoadedModel
from prospect.model.geometry import base_geometry, empty_model
from prospect.model.interface import DSTModel
from prospect.model.settings import ModelSettings
from prospect.model.tokenizer import fit_tokenizer

DIGIT = "1"
"""Text of every utterance, repeated: a single token in every tokenizer used here."""
_GAIN = 4.0
_STRENGTH = 1e4
"""Size of the planted direction: above what all layers together add to the residual stream."""
_LOGIT = 20.0
"""Logit of the speaking head at a frame that speaks; negated at a silent one."""
_BIAS = 1e4


def planted_model(suite: EngineSuite, device: str, cache: Path) -> LoadedModel:
    """The suite's geometry on `device`, which speaks at the frames that `frame_features` marks.

    Raises:
        CheckpointError: the base is unknown, or its own weights are asked for and cannot be loaded.
    """
    settings = ModelSettings(base=suite.base, dtype=suite.dtype, adaptation="full")
    if suite.weights == "base":
        tokenizer = build_tokenizer(settings, [SYSTEM_PROMPT] * 10, cache)
        model = build_model(
            settings, tokenizer, vision_dim=suite.vision_dim, tokens_per_frame=1, fingerprint="random", cache=cache
        )
        torch.nn.Module.to(model, device)
    else:
        tokenizer = fit_tokenizer([SYSTEM_PROMPT] * 10, settings.tiny.vocab_size)
        model = _random(settings, suite, tokenizer, device)
    vocabulary = Vocabulary(tokenizer, model.config.stop_ids or ())
    (digit,) = vocabulary.encode(DIGIT)
    _plant(model, digit)
    return LoadedModel(model.eval(), vocabulary, Path("random"), {})


def frame_features(noise: np.ndarray, speaks: bool) -> np.ndarray:
    """`noise` [D] as the features [1, D] of a frame at which the planted model speaks, or is silent."""
    features = noise.astype(np.float16)[None]
    features[0, 0] = 1 if speaks else -1
    return features


def kv_shape(model: DSTModel) -> tuple[int, int]:
    """Key-value heads and their width."""
    return model.kv_geometry.heads, model.kv_geometry.head_dim


def _random(settings: ModelSettings, suite: EngineSuite, tokenizer: object, device: str) -> DSTModel:
    """Normal matrices of deviation 0.02, norms of one."""
    torch.manual_seed(suite.seed)
    model = empty_model(base_geometry(settings), settings, suite.vision_dim).to_empty(device=device)
    model.tie_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
            else:
                nn.init.constant_(parameter, float("norm" in name))
    model.text.rotary_emb = type(model.text.rotary_emb)(model.text_config).to(device)
    ids = tokenizer.convert_tokens_to_ids(list(GRAMMAR_TOKENS))  # type: ignore[attr-defined]
    model.config.grammar_ids = dict(zip(GRAMMAR_TOKENS, ids, strict=True))
    model.config.stop_ids = [tokenizer.eos_token_id]  # type: ignore[attr-defined]
    model.config.fingerprint = "random"
    return model


@torch.no_grad()
def _plant(model: DSTModel, digit: int) -> None:
    first = torch.zeros(model.config.vision_dim)
    first[0] = 1
    plant_decision(model, first)
    tied = model.lm_head.weight
    bias = torch.zeros(len(tied), device=tied.device, dtype=tied.dtype)
    bias[digit] = _BIAS
    model.lm_head.bias = nn.Parameter(bias)


@torch.no_grad()
def plant_decision(model: DSTModel, direction: torch.Tensor, threshold: float = 0.0) -> int:
    """Have the model speak at frames with `features @ direction > threshold`; return the axis that carries the mark.

    Two hidden units of the projector pass the mark on, one as it is and one turned round.
    """
    norm, projector = model.text.norm.weight, model.mm_projector
    axis = int(norm.abs().argmax())
    for unit, sign in enumerate((1.0, -1.0)):
        projector.up.weight[unit] = sign * _GAIN * direction
        projector.up.bias[unit] = -sign * _GAIN * threshold
        projector.down.weight[:, unit] = 0
        projector.down.weight[axis, unit] = sign * _STRENGTH / _GAIN
    head = model.speaking_decision_head
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    head.get_parameter("layers.0.weight")[0, axis] = _LOGIT / (norm[axis].float() * norm.numel() ** 0.5)
    return axis
