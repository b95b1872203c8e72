"""The packaged sentence encoder on sentences as the assistant says them, and encoders by name."""

from pathlib import Path

import numpy as np
import pytest

from prospect.errors import ConfigError
from prospect.similarity import SentenceSimilarity, SimilaritySettings
from tests.tiny_bert import save_bert


@pytest.fixture(scope="module")
def encoder() -> SentenceSimilarity:
    return SentenceSimilarity()


def similarity(encoder: SentenceSimilarity, first: str, second: str) -> float:
    vectors = encoder.embed([first, second])
    return float(vectors[0] @ vectors[1])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Now pour the hot water into the mug.", "Next, add the boiling water to the cup."),
        ("Attach the rear wheels to the chassis.", "Fix the back wheels onto the frame of the toy car."),
        ("Great, you finished chopping the onion.", "Well done, the onion is all chopped."),
    ],
)
def test_paraphrases_are_alike(encoder, first, second):
    assert similarity(encoder, first, second) > 0.5


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Now pour the hot water into the mug.", "Attach the rear wheels to the chassis."),
        ("Great, you finished chopping the onion.", "The pipette should be held upright."),
    ],
)
def test_unrelated_sentences_are_not(encoder, first, second):
    assert similarity(encoder, first, second) < 0.5


def test_vectors_are_unit_float32_and_independent_of_company(encoder):
    texts = ["Stop.", "Pour the hot water into the mug, slowly, until it is nearly full.", "Stop."]
    vectors = encoder.embed(texts)
    assert (vectors.dtype, vectors.shape) == (np.float32, (3, 384))
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-6)
    assert np.array_equal(vectors[0], vectors[2])
    assert np.array_equal(SentenceSimilarity().embed(texts[1:2])[0], vectors[1])


def test_a_very_long_text_is_cut(encoder):
    assert encoder.embed(["mug " * 5000]).shape == (1, 384)


def test_a_missing_model_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"evaluation\.similarity\.model: .*nowhere\.onnx does not exist"):
        SentenceSimilarity(SimilaritySettings(model=tmp_path / "nowhere.onnx"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A random sentence-transformers model: nothing of a hub is needed to load one by path."""
    from sentence_transformers import SentenceTransformer

    path = tmp_path_factory.mktemp("models")
    SentenceTransformer(str(save_bert(path / "bert"))).save(str(path / "sentences"))
    return path / "sentences"


def test_any_sentence_transformers_model_by_folder(folder):
    encoder = SentenceSimilarity(SimilaritySettings(sentence_transformer=str(folder)))
    vectors = encoder.embed(["pour water", "attach the wheel to the chassis", "pour water"])
    assert (vectors.dtype, vectors.shape) == (np.float32, (3, 16))
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-6)
    assert np.array_equal(vectors[0], vectors[2])
    again = SentenceSimilarity(SimilaritySettings(sentence_transformer=str(folder)))
    assert np.array_equal(again.embed(["attach the wheel to the chassis"])[0], vectors[1])


def test_an_unknown_sentence_transformers_model_is_one_sentence():
    settings = SimilaritySettings(sentence_transformer="/nowhere/at-all")
    with pytest.raises(ConfigError, match=r"^labels\.similarity\.sentence_transformer: cannot load /nowhere/at-all .*"):
        SentenceSimilarity(settings, "labels.similarity")


def test_two_encoders_at_once_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must not be set beside model or tokenizer"):
        SimilaritySettings(sentence_transformer="BAAI/bge-base-en-v1.5", model=tmp_path / "model.onnx")
