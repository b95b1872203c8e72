"""The prompt: it asks for a mapping between given ids, never for times."""

from dataclasses import dataclass

from prospect.dialogue.schema import Annotation
from prospect.llm.exchange import one_line
from prospect.llm.settings import Message

SYSTEM = """\
You match the steps of a task with the lines that annotators wrote while they watched a video of it.
You get the goal, the steps (S1, S2, ...) in the order in which they were carried out, and the blocks \
(B1, B2, ...): the annotators' lines in order of time, their times for information only.
Decide for every block which step it belongs to:
- Every block belongs to exactly one step.
- Every step has at least one block.
- The blocks of a step are consecutive.
- Steps follow each other in order: all blocks of S1 come before all blocks of S2, and so on.
Answer with one JSON object and nothing else, using only the ids given:
{"mapping": {"S1": ["B1", "B2"], "S2": ["B3"]}}"""

REMINDER = "Answer with the whole corrected JSON object only."


@dataclass(frozen=True)
class MappingRequest:
    """One video's steps and blocks."""

    video: str
    """Names the video in results; two videos with the same content are asked about once."""
    goal: str
    steps: tuple[str, ...]
    """Names of the steps that were performed, in order: S1..SK."""
    blocks: tuple[Annotation, ...]
    """Annotation lines in order of time: B1..BN."""


def opening(request: MappingRequest) -> tuple[Message, ...]:
    """The first two messages of a video's conversation."""
    steps = "\n".join(f"S{number}: {one_line(name)}" for number, name in enumerate(request.steps, 1))
    blocks = "\n".join(f"B{number} {_block(block)}" for number, block in enumerate(request.blocks, 1))
    content = f"Goal: {one_line(request.goal) or 'not given'}\n\nSteps:\n{steps}\n\nBlocks:\n{blocks}"
    return {"role": "system", "content": SYSTEM}, {"role": "user", "content": content}


def _block(block: Annotation) -> str:
    end = "" if block.end is None else f"-{block.end:.1f}s"
    part = "- " if block.depth else ""
    mistake = f" (mistake: {one_line(block.mistake)})" if block.mistake else ""
    return f"[{block.start:.1f}s{end}] {part}{one_line(block.text)}{mistake}"
