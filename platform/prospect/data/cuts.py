"""Where dialogues are cut into clips, kept on disk: counting the tokens of every frame takes up to a fifth of a second.

A key hashes everything that a cut depends on: the dialogue on its frames, the tokenizer, the settings and the code.
"""

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import prospect
from prospect.data.clips import Clip, Cut, clips_at, find_cuts
from prospect.data.settings import ClipSettings
from prospect.data.sources import QuarantinedRecord
from prospect.dialogue.schema import Dialogue
from prospect.dialogue.sequence import SequenceBuilder
from prospect.dialogue.timeline import Timeline
from prospect.errors import DataError
from prospect.files import write_text
from prospect.hashing import fingerprint, hash_file

Placed = tuple[Dialogue, Timeline]

Found = list[Cut] | QuarantinedRecord
"""Where a dialogue is cut, or why it cannot be."""

FindAll = Callable[[Sequence[Placed]], Iterable[Found]]
"""Finds the cuts of several dialogues, in their order."""


def find_all(builder: SequenceBuilder, clips: ClipSettings, placed: Iterable[Placed]) -> Iterator[Found]:
    """The cuts of each dialogue, one after the other, in this process."""
    for dialogue, timeline in placed:
        try:
            yield find_cuts(dialogue, timeline, builder, clips)
        except DataError as error:
            where = f"{dialogue.video_id}/{dialogue.dialogue_id}"
            yield QuarantinedRecord(dialogue.dataset, where, error.field or "clip", str(error))


class CutFile:
    """The cuts of all dialogues that were cut with these settings, one file: key of a dialogue -> its cuts.

    Args:
        folder: of such files.
        builder: tokenizer, context and tokens a frame.
        clips: how dialogues are cut.
    """

    def __init__(self, folder: Path, builder: SequenceBuilder, clips: ClipSettings) -> None:
        tokenizer = builder.vocabulary.tokenizer
        rules = [
            _code_hash(),
            tokenizer.backend_tokenizer.to_str(),
            tokenizer.chat_template,
            builder.settings.model_dump(mode="json"),
            builder.tokens_per_frame,
            clips.model_dump(mode="json"),
        ]
        self._file = folder / f"{fingerprint(rules)}.json"
        known = json.loads(self._file.read_text()) if self._file.is_file() else {}
        self._cuts: dict[str, list[Cut]] = {key: [Cut(*each) for each in cuts] for key, cuts in known.items()}

    def get(self, dialogue: Dialogue, timeline: Timeline) -> list[Cut] | None:
        return self._cuts.get(_key(dialogue, timeline))

    def add(self, dialogue: Dialogue, timeline: Timeline, cuts: list[Cut]) -> None:
        self._cuts[_key(dialogue, timeline)] = cuts

    def write(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self._file, json.dumps(self._cuts))


def make_clips(
    placed: Sequence[Placed],
    builder: SequenceBuilder,
    clips: ClipSettings,
    folder: Path | None = None,
    find: FindAll | None = None,
) -> tuple[list[Clip], list[QuarantinedRecord]]:
    """The clips of all dialogues, in their order; one that cannot be cut to the context's length is quarantined.

    Args:
        placed: the dialogues.
        builder: tokenizer, context and tokens a frame.
        clips: how they are cut.
        folder: of cuts that are kept; None: nothing is kept.
        find: finds the cuts of dialogues whose cuts are not known; default: in this process.
    """
    kept = None if folder is None else CutFile(folder, builder, clips)
    cuts: dict[int, Found] = {}
    for index, pair in enumerate(placed):
        if kept is not None and (known := kept.get(*pair)) is not None:
            cuts[index] = known
    missing = [index for index in range(len(placed)) if index not in cuts]
    find = find or functools.partial(find_all, builder, clips)
    for index, found in zip(missing, find([placed[index] for index in missing]), strict=True):
        cuts[index] = found
        if kept is not None and not isinstance(found, QuarantinedRecord):
            kept.add(*placed[index], found)
    if kept is not None and missing:
        kept.write()
    made: list[Clip] = []
    quarantined = []
    for index, (dialogue, timeline) in enumerate(placed):
        found = cuts[index]
        if isinstance(found, QuarantinedRecord):
            quarantined.append(found)
        else:
            made += clips_at(found, dialogue, timeline, builder.settings, clips)
    return made, quarantined


def _key(dialogue: Dialogue, timeline: Timeline) -> str:
    return fingerprint([dialogue.model_dump(mode="json"), timeline.num_frames])


@functools.cache
def _code_hash() -> str:
    """Hash of the code that counts tokens and cuts, so that another version cuts anew."""
    package = Path(prospect.__file__).parent
    files = [*sorted((package / "dialogue").rglob("*.py")), package / "data" / "clips.py"]
    return fingerprint([hash_file(file) for file in files])
