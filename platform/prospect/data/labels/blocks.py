"""Selects blocks among annotation lines: the units that labelling assigns to steps.

Annotators nest lines: a line of depth 1 under one of depth 0, or a line within the time of another one. A line with
parts is a container. Its text names the purpose ("attach the shift arm") and its parts say less ("grab lever"), so
a container replaces its parts (the overlap-aware reducer of ProAssist's labellers). A recipe may be finer than the
containers: while there are fewer blocks than asked for, the longest container is replaced by its parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from prospect.dialogue.schema import Annotation


@dataclass
class _Line:
    """A line and the lines inside it."""

    line: Annotation
    parts: list["_Line"] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return (self.line.end or self.line.start) - self.line.start

    def contains(self, line: Annotation) -> bool:
        if line.depth != self.line.depth:
            return line.depth > self.line.depth
        end = line.start if line.end is None else line.end
        return self.line.end is not None and line.start >= self.line.start and end <= self.line.end

    def opened(self) -> list["_Line"]:
        """Its parts, preceded by its own time before the first part, if any."""
        first = min(part.line.start for part in self.parts)
        if first <= self.line.start:
            return self.parts
        return [_Line(self.line.model_copy(update={"end": first})), *self.parts]


def blocks_of(annotations: Sequence[Annotation], at_least: int = 0) -> tuple[Annotation, ...]:
    """The blocks in the order of their start.

    Of lines with equal start the longer one is the container; of equal lines the first. Containers are opened, the
    longest first, until there are `at_least` blocks or nothing to open. The aligner asks for
    `AlignerSettings.blocks_per_step` times the number of steps.
    """
    blocks = _nested(annotations)
    while len(blocks) < at_least:
        containers = [block for block in blocks if block.parts]
        if not containers:
            break
        longest = max(containers, key=lambda block: block.seconds)
        place = next(index for index, block in enumerate(blocks) if block is longest)
        blocks[place : place + 1] = longest.opened()
    return tuple(block.line for block in sorted(blocks, key=lambda block: block.line.start))


def _nested(annotations: Sequence[Annotation]) -> list[_Line]:
    """The outermost lines, each with its parts."""
    found: list[_Line] = []
    open_lines: list[_Line] = []
    for line in sorted(annotations, key=lambda line: (line.start, line.depth, -(line.end or line.start))):
        node = _Line(line)
        while open_lines and not open_lines[-1].contains(line):
            open_lines.pop()
        (open_lines[-1].parts if open_lines else found).append(node)
        open_lines.append(node)
    return found
