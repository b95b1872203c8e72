"""The hand-made videos of the evaluation's tests."""

from tests.evaluation.conftest import chat, quiet, references, tea, toy, words

__all__ = ["chat", "quiet", "references", "tea", "toy", "words"]
