"""The examples in docs/data.md of what labelling writes."""

import csv
from pathlib import Path

from prospect.data.labels.llm.cache import LLMExchange
from prospect.data.labels.table import COLUMNS

DOCUMENT = (Path(__file__).resolve().parents[3] / "docs" / "data.md").read_text(encoding="utf-8")


def example(name: str) -> str:
    return DOCUMENT.split(f"{name}\n", 1)[1].split("```", 1)[0]


def test_the_table_has_these_columns() -> None:
    header, *rows = csv.reader(example("```tsv labels").splitlines(), delimiter="\t")
    assert tuple(header) == COLUMNS
    assert all(len(row) == len(COLUMNS) and float(row[5]) < float(row[6]) for row in rows)


def test_the_kept_conversation_is_one() -> None:
    conversation = LLMExchange.model_validate_json(example("```json conversation"))
    assert conversation.finished(max_retries=3)
    assert conversation.attempts[0].answer is not None
    assert conversation.answered(conversation.attempts[0].answer).assignment == conversation.assignment
