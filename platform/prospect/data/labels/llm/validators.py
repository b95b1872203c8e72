"""Reads an answer as a mapping, or lists what is wrong in words that the model can act on."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise

from prospect.llm.exchange import AnswerFailure, InvalidAnswer
from prospect.llm.json_answer import json_error, json_objects

SHOWN_IDS = 20


def read_mapping(answer: str, num_steps: int, num_blocks: int, finish_reason: str = "stop") -> tuple[int, ...]:
    """The step index (from 0) of each block: non-decreasing, complete, every step at least once.

    Args:
        answer: what the model wrote; prose and code fences around the object are tolerated.
        num_steps: K, for the ids S1..SK.
        num_blocks: N, for the ids B1..BN.
        finish_reason: `length` where the answer was cut off.

    Raises:
        InvalidAnswer: with every failure of the first group that has one: form, ids, order.
    """
    try:
        mapping = _mapping(answer)
    except InvalidAnswer as invalid:
        if finish_reason == "length":
            feedback = "The answer was cut off; write the object alone, without spaces."
            raise InvalidAnswer.of("length", feedback) from invalid
        raise
    steps = {f"S{number}": number - 1 for number in range(1, num_steps + 1)}
    blocks = {f"B{number}": number - 1 for number in range(1, num_blocks + 1)}
    if failures := [*_id_failures(mapping, steps, blocks)]:
        raise InvalidAnswer(*failures)
    spans = [sorted(blocks[block] for block in mapping[step]) for step in steps]
    if failures := [*_consecutive(spans)] or [*_sequential(spans)]:
        raise InvalidAnswer(*failures)
    return tuple(step for step, span in enumerate(spans) for _ in span)


def _mapping(answer: str) -> dict[str, list[str]]:
    """The value of `mapping` in the last object that has one: a model that thinks aloud ends with what it means."""
    if not answer.strip():
        raise InvalidAnswer.of("empty", "The answer was empty.")
    objects = [*json_objects(answer)]
    if not objects:
        raise InvalidAnswer.of("json", f"The answer is not valid JSON: {json_error(answer)}.")
    mapping = next((value["mapping"] for value in reversed(objects) if "mapping" in value), None)
    if mapping is None and '"mapping"' in answer:  # only the inside of the object that is meant can be read
        raise InvalidAnswer.of("json", f"The answer is not valid JSON: {json_error(answer)}.")
    if not isinstance(mapping, dict):
        raise InvalidAnswer.of("structure", 'The object must have one key, "mapping", with an object of step ids.')
    for step, blocks in mapping.items():
        if not isinstance(blocks, list) or not all(isinstance(block, str) for block in blocks):
            raise InvalidAnswer.of(
                "structure", f'The value of "{step}" must be a list of block ids such as ["B1", "B2"].'
            )
    return mapping


def _id_failures(
    mapping: dict[str, list[str]], steps: dict[str, int], blocks: dict[str, int]
) -> Iterator[AnswerFailure]:
    given = Counter(block for members in mapping.values() for block in members)
    unknown = [step for step in mapping if step not in steps] + [block for block in given if block not in blocks]
    if unknown:
        allowed = f"S1 to S{len(steps)} and B1 to B{len(blocks)}"
        yield AnswerFailure(kind="unknown", feedback=f"These ids do not exist: {_listed(unknown)}; use {allowed} only.")
    repeated = [block for block, count in given.items() if count > 1]
    if repeated:
        feedback = f"These blocks appear more than once: {_listed(repeated)}; each block belongs to one step."
        yield AnswerFailure(kind="duplicate", feedback=feedback)
    absent = [block for block in blocks if block not in given]
    if absent:
        yield AnswerFailure(
            kind="missing", feedback=f"These blocks are missing: {_listed(absent)}; give each to a step."
        )
    bare = [step for step in steps if not mapping.get(step)]
    if bare:
        yield AnswerFailure(
            kind="missing", feedback=f"These steps have no block: {_listed(bare)}; each needs at least one."
        )


def _consecutive(spans: list[list[int]]) -> Iterator[AnswerFailure]:
    for step, span in enumerate(spans, 1):
        gap = next((block for block, after in pairwise(span) if after > block + 1), None)
        if gap is not None:
            feedback = f"The blocks of S{step} are not consecutive: B{gap + 2} stands between them and is another's."
            yield AnswerFailure(kind="consecutive", feedback=feedback)


def _sequential(spans: list[list[int]]) -> Iterator[AnswerFailure]:
    for step, (span, after) in enumerate(pairwise(spans), 1):
        if after[0] < span[0]:
            feedback = (
                f"The steps are out of order: B{after[0] + 1} of S{step + 1} comes before B{span[0] + 1} of S{step}."
            )
            yield AnswerFailure(kind="sequential", feedback=feedback)


def _listed(ids: Iterable[str]) -> str:
    ids = [*ids]
    more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
    return ", ".join(ids[:SHOWN_IDS]) + more
