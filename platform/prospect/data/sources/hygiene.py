"""Keeps scores honest: splits by recording, and a search for duplicate dialogues."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from prospect.data.sources.names import SPLITS, recording_of
from prospect.data.sources.quarantine import QuarantinedRecord
from prospect.dialogue.schema import Dialogue
from prospect.errors import ConfigError
from prospect.hashing import derived_seed


@dataclass(frozen=True)
class Duplicate:
    """Two dialogues of the same goal and the same utterances."""

    first: str
    """`video_id/dialogue_id` of the one that comes first in the source."""
    second: str
    splits: tuple[str, str]
    """Their splits."""

    @property
    def crosses_splits(self) -> bool:
        """Whether the two stand on different sides of a split."""
        return self.splits[0] != self.splits[1]

    def __str__(self) -> str:
        return f"{self.second} ({self.splits[1]}) says what {self.first} ({self.splits[0]}) says"


def _recording(dialogue: Dialogue) -> str:
    return recording_of(dialogue.dataset, dialogue.video_id)


def _strictest(splits: Iterable[str]) -> str:
    """The split that is held out most; a split of an unknown name comes after train."""
    return max(splits, key=lambda split: (SPLITS.index(split) if split in SPLITS else 0.5, split))


def with_splits(dialogues: list[Dialogue], holdout: int | tuple[str, ...]) -> list[Dialogue]:
    """Held-out recordings are `test`; of the others, those without a split of the source are `train`.

    Raises:
        ConfigError: a held-out video is unknown, or there are fewer recordings than are to be held out.
    """
    stated: dict[str, set[str]] = defaultdict(set)
    for dialogue in dialogues:
        stated[_recording(dialogue)] |= {dialogue.split} - {""}
    test = set(_drawn(stated, holdout) if isinstance(holdout, int) else _named(dialogues, holdout))
    default = {name: "test" if name in test else _strictest(found or {"train"}) for name, found in stated.items()}
    return [
        dialogue if split == dialogue.split else dialogue.model_copy(update={"split": split})
        for dialogue in dialogues
        for name in [_recording(dialogue)]
        for split in ["test" if name in test else dialogue.split or default[name]]
    ]


def _named(dialogues: list[Dialogue], videos: tuple[str, ...]) -> set[str]:
    """The recordings of the videos, of which all views are held out."""
    recordings = {dialogue.video_id: _recording(dialogue) for dialogue in dialogues}
    for video in videos:
        if video not in recordings:
            raise ConfigError(f"data.holdout: no dialogue is about video {video!r}", field="data.holdout")
    return {recordings[video] for video in videos}


def _drawn(stated: dict[str, set[str]], count: int) -> list[str]:
    """`count` recordings by hash: the draw does not depend on the order of the files."""
    free = sorted((name for name, splits in stated.items() if not splits), key=lambda n: derived_seed("holdout", n))
    if not 0 <= count <= len(free):
        raise ConfigError(
            f"data.holdout: {count} of {len(free)} recordings without a split of their own cannot be held out",
            field="data.holdout",
        )
    return free[:count]


def without_straddling(dialogues: list[Dialogue]) -> tuple[list[Dialogue], list[QuarantinedRecord]]:
    """Keep the strictest split of each recording; its parts in other splits are quarantined."""
    videos: dict[str, dict[str, str]] = defaultdict(dict)
    for dialogue in dialogues:
        videos[_recording(dialogue)].setdefault(dialogue.split, dialogue.video_id)
    kept, quarantined = [], []
    for dialogue in dialogues:
        name = _recording(dialogue)
        split = _strictest(videos[name])
        if split == dialogue.split:
            kept.append(dialogue)
            continue
        reason = f"it is in {dialogue.split}, but recording {name} is in {split} with video {videos[name][split]}"
        key = f"{dialogue.video_id}/{dialogue.dialogue_id}"
        quarantined.append(QuarantinedRecord(dialogue.dataset, key, "split", reason))
    return kept, quarantined


def find_duplicates(dialogues: list[Dialogue]) -> list[Duplicate]:
    """Find dialogues that repeat the goal and utterances of an earlier one (goal and steps if nobody speaks)."""
    first: dict[int, Dialogue] = {}
    found = []
    for dialogue in dialogues:
        content = _content(dialogue)
        earlier = first.setdefault(hash(content), dialogue)
        if earlier is dialogue or not content[1] or _content(earlier) != content:
            continue
        one, other = (f"{d.video_id}/{d.dialogue_id}" for d in (earlier, dialogue))
        found.append(Duplicate(one, other, splits=(earlier.split, dialogue.split)))
    return found


def _content(dialogue: Dialogue) -> tuple[str, tuple[tuple[object, ...], ...]]:
    """The content that makes two dialogues duplicates; times of utterances may differ."""
    turns = tuple((turn.role, turn.text) for turn in dialogue.turns)
    return dialogue.goal, turns or tuple((step.name, step.start, step.end) for step in dialogue.steps)
