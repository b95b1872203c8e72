"""What an evaluation is of: model, data and rules; and whether its score may make a model the champion."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prospect.data.sources import recording_of
from prospect.dialogue.prompt import ContextSettings
from prospect.dialogue.schema import Dialogue
from prospect.evaluation.settings import EvaluationSettings
from prospect.hashing import fingerprint
from prospect.similarity import Identity
from prospect.streaming.session.strategies import strategy_of

TRAINED_ON = "trained_on"
"""Field of a model's manifest: the videos of its training and of its validation, each as `dataset/video_id`."""

_SHOWN = 3


def video_names(dialogues: Iterable[Dialogue]) -> list[str]:
    """The dialogues' videos as `dataset/video_id`, each once."""
    return sorted({f"{dialogue.dataset}/{dialogue.video_id}" for dialogue in dialogues})


def seen_videos(manifest: Mapping[str, Any], dialogues: Iterable[Dialogue]) -> tuple[str, ...] | None:
    """Videos of `dialogues` that the model was trained or validated on, or that show a recording that it was.

    None: the model's manifest does not list its videos.
    """
    if TRAINED_ON not in manifest:
        return None
    known = {recording for name in manifest[TRAINED_ON] for recording in [_recording(name)]}
    return tuple(name for name in video_names(dialogues) if _recording(name) in known)


def _recording(name: str) -> tuple[str, str]:
    dataset, _, video_id = name.partition("/")
    return dataset, recording_of(dataset, video_id)


def is_told(context: ContextSettings) -> bool:
    """Whether an evaluation tells the model the reference's state, as the published code does."""
    return context.published and strategy_of(context).asks == "state"


@dataclass(frozen=True)
class Lineage:
    """One evaluation: everything that its scores depend on, and what a reader has to know of them."""

    model: str
    """As it was asked for."""
    weights: str
    """Hash of the model's files."""
    split: str
    records: str
    """Fingerprint of the scored dialogues."""
    embeddings: str
    """Fingerprint of the frames."""
    videos: int
    dialogues: int
    missing: tuple[str, ...]
    """Held-out videos without an embedding, which are not scored."""
    seen: tuple[str, ...] | None
    """Scored videos that the model was trained or validated on; None: its manifest lists none."""
    told: bool
    """Whether the model was told the reference's state."""
    rules: Mapping[str, Any]
    """Settings of matching, context and streaming, and the thresholds in force."""
    paced: Mapping[str, Any] | None = None
    """Settings of the latency-aware mode, and the machine that it ran on; None: no frame waited for the model."""

    @property
    def key(self) -> str:
        """Of the result: equal for equal models, data and rules, whatever the model was called."""
        values = {**asdict(self), "model": None}
        if self.paced is None:  # as before there was this mode
            del values["paced"]
        return fingerprint(values)

    @property
    def count(self) -> str:
        """`24 videos`, or `23 of 24 videos`."""
        every = self.videos + len(self.missing)
        return f"{self.videos} of {counted(every, 'video')}" if self.missing else counted(self.videos, "video")

    def marks(self) -> Iterator[str]:
        """What stands beside the scores wherever they are shown."""
        if self.paced is not None:
            speed, sessions = self.paced["speed"], counted(self.paced["sessions"], "session")
            yield f"latency-aware at {speed:g}x speed, {sessions} at once: the scores depend on this machine's speed"
        if self.told:
            yield "told the reference's state"
        if self.seen is None:
            yield "unknown whether the model was trained on these videos"
        elif self.seen:
            yield f"trained on {len(self.seen)} of these videos ({_first(self.seen)})"
        if self.missing:
            yield f"{counted(len(self.missing), 'video')} without an embedding: not scored ({_first(self.missing)})"

    @property
    def obstacle(self) -> str | None:
        """Why the score may not make the model the champion."""
        if self.paced is not None:
            return "its score depends on this machine's speed"
        if self.told:
            return "it was told the reference's state"
        if self.seen is None:
            return "its manifest does not say which videos it was trained on"
        return f"it was trained on {len(self.seen)} of the videos" if self.seen else None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "marks": list(self.marks())}


def scoring_rules(settings: EvaluationSettings, encoder: Identity, datasets: Iterable[str]) -> dict[str, Any]:
    """What scores depend on, beside model, data and stream."""
    return {
        "evaluation": settings.rules(),
        "encoder": encoder,
        "windows": {name: settings.matching.window(name) for name in sorted(set(datasets))},
    }


def records_fingerprint(dialogues: Sequence[Dialogue]) -> str:
    """Changes with any of the dialogues."""
    return fingerprint([dialogue.model_dump(mode="json") for dialogue in dialogues])


def counted(number: int, what: str) -> str:
    """`1 video`, `2 videos`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
