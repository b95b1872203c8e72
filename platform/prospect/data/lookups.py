"""Where the words of a step's name, which an utterance says, stand in the step's line of the context."""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property

from prospect.dialogue.sequence import FrameSequence, TextTask
from prospect.dialogue.vocabulary import Vocabulary


class LookupFinder:
    """Finds lookups in the sequences of one vocabulary; upper and lower case are the same."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    @cached_property
    def _texts(self) -> list[str]:
        """Each token's text in lower case."""
        tokenizer = self._vocabulary.tokenizer
        return [tokenizer.decode([token]).lower() for token in range(len(tokenizer))]

    def find(self, sequence: FrameSequence, steps: Sequence[str]) -> list[tuple[int, int]]:
        """Pairs of positions: what predicts a token of a name that is said, and the token that begins so in the line.

        Args:
            sequence: of a clip.
            steps: names of its steps. A name that is not said whole is not found.
        """
        found = []
        for start, stop in _utterances(sequence):
            said, owners = self._spell(sequence.ids, start, stop)
            for step, end in zip(steps, sequence.step_positions, strict=True):
                name = " ".join(step.split()).lower()
                line = self._places(sequence.ids, end, name)
                for match in re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", said) if line else ():
                    first = {owners[match.start() + i]: i for i in reversed(range(len(name)))}
                    found += [(token - 1, line[i]) for token, i in sorted(first.items())]
        return found

    def _spell(self, ids: Sequence[int], start: int, stop: int) -> tuple[str, list[int]]:
        """The text of the tokens from `start` to `stop`, and the position that each of its characters comes from."""
        owners = [position for position in range(start, stop) for _ in self._texts[ids[position]]]
        return "".join(self._texts[token] for token in ids[start:stop]), owners

    def _places(self, ids: Sequence[int], end: int, name: str) -> list[int]:
        """The position of each character of `name`, which the token at `end` ends; empty where its line is not shown.

        A name is spelt differently where it holds a special token's text.
        """
        start, length = end + 1, 0
        while length < len(name) and start > 0:
            start -= 1
            length += len(self._texts[ids[start]])
        text, owners = self._spell(ids, start, end + 1)
        return owners[len(text) - len(name) :] if name and text.endswith(name) else []


def _utterances(sequence: FrameSequence) -> Iterator[tuple[int, int]]:
    """Spans of tokens that are labels of utterances, each with its stop token."""
    says = [task is TextTask.SPEAKING for task in (TextTask.NONE, *sequence.text_tasks, TextTask.NONE)]
    borders = [position for position in range(len(says) - 1) if says[position] != says[position + 1]]
    return zip(borders[::2], borders[1::2], strict=True)
