"""Where the words are to be found that the assistant says: in the context's line of a step, or in the frame."""

import random
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

from prospect.data.clips import Clip
from prospect.dialogue.sequence import FrameSequence, TextTask
from prospect.dialogue.state import StepState
from prospect.dialogue.vocabulary import Vocabulary
from prospect.hashing import derived_seed


class Lookup(NamedTuple):
    """A position that looks for the token `word`, and the position `place` where it finds it."""

    position: int
    place: int
    word: int


class LookupFinder:
    """Finds lookups in the sequences of one vocabulary; upper and lower case are the same."""

    def __init__(self, vocabulary: Vocabulary, names: Iterable[str] = (), seed: int = 0) -> None:
        """Choose what frames may show.

        Args:
            vocabulary: of the sequences.
            names: of the steps of all clips; a frame can show what they name.
            seed: of the frames that are named.
        """
        self._vocabulary = vocabulary
        self._names = frozenset(word for name in names for word in _words(name))
        self._seed = seed

    @cached_property
    def _texts(self) -> list[str]:
        """Each token's text in lower case."""
        tokenizer = self._vocabulary.tokenizer
        return [tokenizer.decode([token]).lower() for token in range(len(tokenizer))]

    def find(self, sequence: FrameSequence, clip: Clip, epoch: int) -> list[Lookup]:
        """Lookups of a clip: in steps' lines, in frames that are talked about, and of frames that are named.

        - A step's name that is said: each token that predicts one of it looks at the same place in the step's line.
          A name that is not said whole is not found.
        - A word of other steps' names, such as the wrong object's in a correction: looks at the frame.
        - A frame in which a step is in progress says the step's name, so that frames are named also where nothing is
          said: one frame a step, drawn by seed, epoch and clip.
        """
        names = [" ".join(step.split()).lower() for step in clip.dialogue.step_names]
        places = zip(names, sequence.step_positions, strict=True)
        lines = [self._places(sequence.ids, end, name) for name, end in places]
        return [
            *self._said(sequence, names, lines),
            *self._shown(sequence, names),
            *self._named(sequence, lines, clip, epoch),
        ]

    def _said(self, sequence: FrameSequence, names: Sequence[str], lines: Sequence[list[int]]) -> Iterator[Lookup]:
        for start, stop in _utterances(sequence):
            said, owners = self._spell(sequence.ids, start, stop)
            for name, line in zip(names, lines, strict=True):
                for match in re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", said) if line else ():
                    first = {owners[match.start() + i]: i for i in reversed(range(len(name)))}
                    for token, i in sorted(first.items()):
                        yield Lookup(token - 1, line[i], sequence.ids[token])

    def _shown(self, sequence: FrameSequence, names: Sequence[str]) -> Iterator[Lookup]:
        shown = self._names.difference(*map(_words, names))
        for start, stop in _utterances(sequence):
            frame = sequence.decision_positions[bisect_left(sequence.decision_positions, start) - 1]
            said, owners = self._spell(sequence.ids, start, stop)
            for match in re.finditer(r"\w+", said):
                if match.group() in shown:
                    for token in sorted(set(owners[match.start() : match.end()])):
                        yield Lookup(token - 1, frame, sequence.ids[token])

    def _named(self, sequence: FrameSequence, lines: Sequence[list[int]], clip: Clip, epoch: int) -> Iterator[Lookup]:
        for step, line in enumerate(lines):
            busy = [i for i, state in enumerate(clip.states) if state.steps[step] is StepState.IN_PROGRESS]
            if line and busy:
                drawn = random.Random(derived_seed("named", self._seed, epoch, clip.id, step)).choice(busy)
                frame = sequence.decision_positions[drawn]
                yield from (Lookup(frame, frame, sequence.ids[place]) for place in sorted(set(line)))

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


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _utterances(sequence: FrameSequence) -> Iterator[tuple[int, int]]:
    """Spans of tokens that are labels of utterances, each with its stop token."""
    says = [task is TextTask.SPEAKING for task in (TextTask.NONE, *sequence.text_tasks, TextTask.NONE)]
    borders = [position for position in range(len(says) - 1) if says[position] != says[position + 1]]
    return zip(borders[::2], borders[1::2], strict=True)
