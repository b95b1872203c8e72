"""Entailment between a line and a step by a cross-encoder: optional evidence beside sentence similarity."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from prospect.errors import ConfigError
from prospect.messages import first_line

_HYPOTHESIS = "This action is part of step: '{}'."


class Entailment(Protocol):
    """How much a line's text says that it belongs to a step."""

    def scores(self, blocks: Sequence[str], steps: Sequence[str]) -> NDArray[np.float32]:
        """[B, K] probability of entailment minus that of contradiction."""
        ...


class CrossEncoderEntailment:
    """Any NLI cross-encoder of sentence-transformers, by name or folder. Each distinct pair is read once.

    Raises (on construction):
        ConfigError: there is no such model, or it does not tell entailment from contradiction.
    """

    def __init__(self, model: str, field: str = "labels.aligner.nli_model") -> None:
        from sentence_transformers import CrossEncoder

        try:
            self._model = CrossEncoder(model)
        except (OSError, ValueError) as error:
            reason = f"cannot load {model} ({first_line(error)}); give an NLI cross-encoder by name or folder"
            raise ConfigError(f"{field}: {reason}", field=field) from error
        classes = {str(name).lower(): index for index, name in self._model.config.id2label.items()}
        if not {"entailment", "contradiction"} <= classes.keys():
            known = ", ".join(sorted(classes))
            sentence = f"{field}: {model} has the classes {known}; give a model with entailment and contradiction"
            raise ConfigError(sentence, field=field)
        self._entailment, self._contradiction = classes["entailment"], classes["contradiction"]
        self._known: dict[tuple[str, str], float] = {}

    def scores(self, blocks: Sequence[str], steps: Sequence[str]) -> NDArray[np.float32]:
        """float32 [B, K] in [-1, 1]."""
        pairs = [(block, _HYPOTHESIS.format(step)) for block in blocks for step in steps]
        for pair in dict.fromkeys(pairs):
            if pair not in self._known:
                (probabilities,) = self._model.predict([pair], apply_softmax=True, show_progress_bar=False)
                self._known[pair] = float(probabilities[self._entailment] - probabilities[self._contradiction])
        return np.array([self._known[pair] for pair in pairs], np.float32).reshape(len(blocks), len(steps))
