"""The project's own JSON lines: one `Dialogue` a line. The sample corpus, recorded sessions and labelling write it."""

from collections.abc import Iterable

from prospect.data.sources.base import Raw, Reader
from prospect.data.sources.fields import fields_of
from prospect.dialogue.schema import Dialogue


def to_jsonl(dialogues: Iterable[Dialogue]) -> str:
    """The text of a file that this reader reads back to equal records."""
    return "".join(f"{dialogue.model_dump_json(exclude_defaults=True)}\n" for dialogue in dialogues)


def convert(raw: Raw) -> Dialogue:
    """One line, whose fields are those of `Dialogue`."""
    return Dialogue.model_validate(raw)


READER = Reader(patterns=("*.jsonl", "*.jsonl.gz"), fields=fields_of(Dialogue), convert=convert)
