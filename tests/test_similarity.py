"""The packaged sentence encoder on sentences as the assistant says them, and encoders by name."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from prospect.errors import ConfigError
from prospect.similarity import INSTALLED, PUBLISHED, Identity, SentenceSimilarity, SimilaritySettings
from tests.conftest import REPOSITORY
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
    assert again.embed(["attach the wheel to the chassis"])[0] == pytest.approx(vectors[1], abs=1e-6)


@pytest.mark.parametrize(("packaged", "most"), [(True, 0.0), (False, 1e-6)], ids=["int8", "float"])
def test_neighbours_in_a_batch_change_no_vector(packaged, most, folder):
    """Of the int8 model, which a batch would change much, not a bit; of a float model the last ones."""
    settings = SimilaritySettings(sentence_transformer=None if packaged else str(folder))
    texts = ["pour " * length + "the water" for length in range(1, 70, 4)]
    together, alone = SentenceSimilarity(settings).embed(texts), SentenceSimilarity(settings)
    assert np.abs(np.stack([alone.embed([text])[0] for text in texts]) - together).max() <= most


def test_a_text_is_read_as_far_as_the_model_was_made_for(folder, tmp_path):
    """all-mpnet-base-v2 reads 384 tokens, more than the packaged model's 256."""
    longer = copy_with_limit(folder, tmp_path / "long", 384)
    texts = ["pour " * 300 + "water", "pour " * 300 + "soup"]
    for settings, same in (
        (SimilaritySettings(sentence_transformer=str(longer)), False),
        (SimilaritySettings(sentence_transformer=str(longer), max_tokens=256), True),
        (SimilaritySettings(), True),
    ):
        vectors = SentenceSimilarity(settings).embed(texts)
        assert np.array_equal(vectors[0], vectors[1]) == same


def copy_with_limit(folder: Path, target: Path, tokens: int) -> Path:
    shutil.copytree(folder, target)
    file = next(file for file in target.rglob("*.json") if file.name == "sentence_bert_config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "max_seq_length": tokens}))
    return target


def test_an_identity_follows_the_files_and_the_limit_and_not_their_place(folder, tmp_path):
    def identity(place: Path, **changes: int) -> Identity:
        return SentenceSimilarity(SimilaritySettings(sentence_transformer=str(place), **changes)).identity

    same = Path(shutil.copytree(folder, tmp_path / "elsewhere" / folder.name))
    (same / "README.md").write_text("Other words.")
    assert identity(same) == identity(folder) != identity(folder, max_tokens=8)
    with (same / "vocab.txt").open("a") as file:
        file.write("\nsaw")
    assert identity(same)["hash"] != identity(folder)["hash"]
    assert SentenceSimilarity().identity["name"] == "all-MiniLM-L6-v2-int8"


def test_vectors_on_disk_spare_the_encoder(folder, tmp_path):
    settings = SimilaritySettings(sentence_transformer=str(folder))
    texts = ["pour water", "stir the soup", "pour water"]
    vectors = SentenceSimilarity(settings, cache=tmp_path / "vectors").embed(texts)
    code = f"""
import sys
from pathlib import Path
from prospect.similarity import SentenceSimilarity, SimilaritySettings
settings = SimilaritySettings(sentence_transformer={str(folder)!r})
vectors = SentenceSimilarity(settings, cache=Path({str(tmp_path)!r}, "vectors")).embed({texts!r})
print(vectors.tobytes().hex(), "torch" in sys.modules)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, cwd=REPOSITORY / "platform", capture_output=True, text=True)
    assert done.stdout.split() == [vectors.tobytes().hex(), "False"]


def test_another_encoder_has_other_vectors_on_disk(folder, tmp_path):
    SentenceSimilarity(cache=tmp_path).embed(["pour water"])
    other = SentenceSimilarity(SimilaritySettings(sentence_transformer=str(folder)), cache=tmp_path)
    assert other.embed(["pour water"]).shape == (1, 16)
    cut = SentenceSimilarity(SimilaritySettings(max_tokens=3), cache=tmp_path)
    assert np.array_equal(*cut.embed(["pour water", "pour soup"]))


def test_a_name_of_the_hub_is_known_by_the_files_that_were_downloaded(folder, tmp_path):
    """The hub's cache as its library lays it out, without a hub."""
    home = tmp_path / "hub" / "models--prospect--sentences"
    shutil.copytree(folder, home / "snapshots" / "0123abc")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0123abc")
    code = """
from prospect.similarity import SentenceSimilarity, SimilaritySettings
print(SentenceSimilarity(SimilaritySettings(sentence_transformer="prospect/sentences")).identity["hash"])
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=REPOSITORY / "platform", env=environment, capture_output=True
    )
    expected = SentenceSimilarity(SimilaritySettings(sentence_transformer=str(folder))).identity["hash"]
    assert done.stdout.decode().split()[-1] == expected


def test_the_published_encoder_is_installed_by_make():
    settings = SimilaritySettings(sentence_transformer=PUBLISHED)
    if (INSTALLED / PUBLISHED).is_dir():
        pytest.skip("it is installed")
    with pytest.raises(ConfigError, match=r"cannot load all-mpnet-base-v2 .*; install it with `make weights-eval`"):
        SentenceSimilarity(settings)


def test_an_unknown_sentence_transformers_model_is_one_sentence():
    settings = SimilaritySettings(sentence_transformer="/nowhere/at-all")
    with pytest.raises(ConfigError, match=r"^labels\.similarity\.sentence_transformer: cannot load /nowhere/at-all .*"):
        SentenceSimilarity(settings, "labels.similarity")


def test_two_encoders_at_once_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must not be set beside model or tokenizer"):
        SimilaritySettings(sentence_transformer="BAAI/bge-base-en-v1.5", model=tmp_path / "model.onnx")
