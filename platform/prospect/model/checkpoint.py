"""Save and load model folders: training writes them, evaluation and serving load them.

A folder holds `config.json`, the tokenizer, `prospect.json` and either full weights (`model.safetensors`) or
an adapter with the base that it belongs to.
"""

import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer

from prospect.devices import pick_device
from prospect.dialogue.vocabulary import Vocabulary
from prospect.errors import CheckpointError, ConfigError
from prospect.messages import first_line
from prospect.model.adapters import build_model, round_to_4_bits, unwrap
from prospect.model.backbones import Backbone, saved_backbone
from prospect.model.configuration import DSTConfig
from prospect.model.interface import DSTModel
from prospect.model.saved import MANIFEST, read_manifest, require_trained
from prospect.model.settings import HEADS, ModelSettings

if TYPE_CHECKING:
    from peft import PeftModel

log = logging.getLogger(__name__)

_ALIGNMENT = 64
"""Bytes to which torch aligns its own tensors on a CPU."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for use, in evaluation mode, with its vocabulary."""

    model: DSTModel
    vocabulary: Vocabulary
    folder: Path
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return self.model.config.fingerprint

    def require_trained(self, *heads: str) -> None:
        """Raise UntrainedHeadError if any of `heads` was never trained."""
        require_trained(self.folder, self.model.config.trained_steps, *heads)


def save_model(
    model: "DSTModel | PeftModel",
    tokenizer: Any,
    settings: ModelSettings,
    folder: Path,
    extra: dict[str, Any] | None = None,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a model folder under a temporary name, then rename it.

    Args:
        model: plain or with LoRA.
        tokenizer: with the grammar's tokens.
        settings: the model's.
        folder: an existing one is replaced.
        extra: JSON to save with the model (run id, vision settings, ...).
        state_dict: weights to save; default: the model's own.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.save_pretrained(str(partial), state_dict=state_dict)
    config = unwrap(model).config
    config.dtype = getattr(torch, settings.dtype)  # transformers would save the dtype of trainable weights
    config.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    manifest = {"model": settings.model_dump(), **(extra or {})}
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=2))
    readable = (partial / MANIFEST).stat().st_mode
    for file in partial.iterdir():  # safetensors lets nobody else read what it writes
        file.chmod(readable)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def load_model(
    folder: str | Path, *, allow_untrained: bool = False, cache: Path | None = None, device: str = "auto"
) -> LoadedModel:
    """Load a model folder for use, with LoRA merged.

    Args:
        folder: from `save_model`.
        allow_untrained: accept a speaking head that was never trained; for benchmarks and calibration.
        cache: folder of converted packaged bases, `ROOT/cache` of a storage root; default: one of the user's own.
        device: where it is to run: `cpu`, `cuda`, or `auto` for a GPU where there is one.

    Raises:
        CheckpointError: missing, unreadable or not written by training.
        UntrainedHeadError: the speaking head was never trained.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        backbone = saved_backbone(json.loads((folder / "config.json").read_text()))
        config = backbone.config.from_pretrained(folder)
        model = _load_weights(folder, backbone, config, tokenizer, manifest, cache or _user_cache())
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"model {folder}: unreadable ({first_line(error)})") from error
    torch.nn.Module.to(model, pick_device(device))
    _align(model)
    loaded = LoadedModel(model.eval(), Vocabulary(tokenizer, config.stop_ids or ()), folder, manifest)
    if not allow_untrained:
        loaded.require_trained(HEADS[0])
    return loaded


def _align(model: torch.nn.Module) -> None:
    """Copy parameters that are unaligned in the memory-mapped file: kernels of some CPUs round them differently."""
    for parameter in model.parameters():
        if parameter.data_ptr() % _ALIGNMENT:
            parameter.data = parameter.data.clone()


def _round_base(base: DSTModel, folder: Path) -> None:
    """Round the base as QLoRA saw it; without bitsandbytes keep it unrounded, with a warning."""
    try:
        round_to_4_bits(base)
    except ConfigError:
        log.warning(
            "model %s was trained on 4-bit weights; without bitsandbytes it decides a little differently", folder
        )


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prospect"


def _load_weights(
    folder: Path, backbone: Backbone, config: DSTConfig, tokenizer: Any, manifest: dict[str, Any], cache: Path
) -> DSTModel:
    if not (folder / "adapter_config.json").is_file():
        read: Any = backbone.model.from_pretrained(folder, dtype="auto", output_loading_info=True)
        model, info = read
        if info["missing_keys"] or info["unexpected_keys"]:
            raise CheckpointError(
                f"weights missing {sorted(info['missing_keys'])[:3]}, unknown {sorted(info['unexpected_keys'])[:3]}"
            )
        return model
    settings = ModelSettings(**manifest["model"])
    base = build_model(
        settings,
        tokenizer,
        vision_dim=config.vision_dim,
        tokens_per_frame=config.tokens_per_frame,
        fingerprint=config.fingerprint,
        cache=cache,
        seed=manifest.get("seed", 0),  # of the frozen base where it is random: `tiny`
    )
    if settings.adaptation == "qlora":
        _round_base(base, folder)
    from peft import PeftModel

    merged = PeftModel.from_pretrained(base, folder).merge_and_unload()
    merged.config.trained_steps, merged.config.thresholds = config.trained_steps, config.thresholds
    return merged
