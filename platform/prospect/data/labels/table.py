"""The tab-separated table of step spans: ids of the dialogue, then `type id start_ts end_ts name confidence`."""

import csv
import io
from collections.abc import Iterable, Iterator

from prospect.dialogue.schema import Dialogue

COLUMNS = ("dataset", "video_id", "dialogue_id", "type", "id", "start_ts", "end_ts", "name", "confidence", "source")


def to_tsv(dialogues: Iterable[Dialogue]) -> Iterator[bytes]:
    """The header, then one part a dialogue with one row a step; unknown values are empty."""
    yield _rows([COLUMNS])
    for dialogue in dialogues:
        times = {(change.step, change.kind): change.time for change in reversed(dialogue.transitions())}
        ids = (dialogue.dataset, dialogue.video_id, dialogue.dialogue_id, "step")
        yield _rows(
            (
                *ids,
                step.id,
                times.get((n, "start")),
                times.get((n, "complete")),
                step.name,
                step.confidence,
                step.source,
            )
            for n, step in enumerate(dialogue.steps)
        )


def _rows(rows: Iterable[tuple[object, ...]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
