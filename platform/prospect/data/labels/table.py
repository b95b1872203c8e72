"""The tab-separated table of step spans: `type id start_ts end_ts name`, behind the dialogue it belongs to."""

import csv
import io
from collections.abc import Iterable

from prospect.dialogue.schema import Dialogue

COLUMNS = ("dataset", "video_id", "dialogue_id", "type", "id", "start_ts", "end_ts", "name")


def to_tsv(dialogues: Iterable[Dialogue]) -> str:
    """One row a step; times are empty where the step has no such transition."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(COLUMNS)
    for dialogue in dialogues:
        times = {(change.step, change.kind): change.time for change in reversed(dialogue.transitions())}
        for index, step in enumerate(dialogue.steps):
            span = (times.get((index, "start"), ""), times.get((index, "complete"), ""))
            writer.writerow(
                (dialogue.dataset, dialogue.video_id, dialogue.dialogue_id, "step", step.id, *span, step.name)
            )
    return text.getvalue()
