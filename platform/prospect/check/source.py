"""What a source holds and what training would get of it, without a model, an encoder or Ray."""

import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rich.table import Table

from prospect.check.config import CheckConfig
from prospect.data.cuts import make_clips
from prospect.data.labels.report import LabelReport, count_labels
from prospect.data.prepare import training_texts
from prospect.data.sources import Corpus, QuarantinedRecord, load_dialogues, place_all
from prospect.dialogue.schema import Dialogue
from prospect.dialogue.sequence import SequenceBuilder
from prospect.dialogue.timeline import FPS, num_frames
from prospect.dialogue.vocabulary import Vocabulary
from prospect.errors import DataError
from prospect.vision.video import header_seconds

MOST_CUT = 200
"""Dialogues that are cut into clips, spread evenly over the source; the others count as these."""
VOCABULARY = 4096
"""Tokens of the vocabulary that is fitted to the source's texts, in place of a model's."""


@dataclass(frozen=True)
class ClipCounts:
    """The clips that training would get of a source's `train` split, by the dialogues that were cut."""

    dialogues: int
    cut: int
    """Dialogues that were cut into clips."""
    frames: tuple[int, ...]
    """Of each clip."""
    tokens: tuple[int, ...]
    """Of each clip, by a vocabulary fitted to the source's texts."""
    quarantined: tuple[QuarantinedRecord, ...] = ()

    @property
    def total(self) -> int:
        """Clips of all dialogues."""
        return round(len(self.frames) * self.dialogues / self.cut) if self.cut else 0

    def __rich__(self) -> Table:
        about = "" if self.cut == self.dialogues else f", by {self.cut} of {self.dialogues:,} dialogues"
        table = Table("", "shortest", "median", "longest", title=f"{self.total:,} clips to train on{about}")
        for name, values in (("frames", self.frames), ("seconds", self._seconds), ("tokens, about", self.tokens)):
            if values:
                shown = (min(values), statistics.median(values), max(values))
                table.add_row(name, *(f"{value:,.0f}" for value in shown))
        return table

    @property
    def _seconds(self) -> tuple[float, ...]:
        return tuple(frames / FPS for frames in self.frames)


@dataclass(frozen=True)
class SourceCheck:
    """What was found out about a source."""

    corpus: Corpus
    report: LabelReport
    unreadable: Mapping[str, str]
    """Of videos whose header cannot be read: the reason."""
    clips: ClipCounts


def check_source(config: CheckConfig) -> SourceCheck:
    """Read a source as every job would, measure its videos by their headers, and cut the clips of training.

    Raises:
        ConfigError: an unknown data set, split or held-out video.
        DataError: the source is missing or unreadable as a whole, or holds no dialogue.
    """
    corpus = load_dialogues(config.data)
    if not corpus.dialogues:
        why = f": {corpus.quarantined[0]}" if corpus.quarantined else ""
        raise DataError(f"`data.path` ({config.data.path}) has no usable dialogue{why}", field="data.path")
    frames, unreadable = _measured(corpus.videos)
    report = count_labels(corpus, frames.get)
    return SourceCheck(corpus, report, unreadable, _clips(config, corpus, frames))


def _measured(videos: Mapping[str, str]) -> tuple[dict[str, int], dict[str, str]]:
    """Frames of each video by its header, and the reason for each that has none."""

    def measure(path: str) -> float | DataError | None:
        try:
            return header_seconds(path)
        except DataError as error:
            return error

    with ThreadPoolExecutor(16) as pool:
        measured = dict(zip(videos, pool.map(measure, videos.values()), strict=True))
    frames = {video: num_frames(seconds) for video, seconds in measured.items() if isinstance(seconds, float)}
    return frames, {video: str(error) for video, error in measured.items() if isinstance(error, DataError)}


def _clips(config: CheckConfig, corpus: Corpus, frames: Mapping[str, int]) -> ClipCounts:
    dialogues = corpus.split("train")
    cut = _spread(dialogues)
    if not cut:
        return ClipCounts(0, 0, (), ())
    from prospect.model.tokenizer import fit_tokenizer  # with transformers

    vocabulary = Vocabulary(fit_tokenizer(training_texts(cut), VOCABULARY))
    builder = SequenceBuilder(vocabulary, config.context, config.vision.tokens_per_frame)
    placed, _ = place_all(cut, frames.get)
    clips, quarantined = make_clips(placed, builder, config.training.clips)
    tokens = tuple(clip.num_tokens or 0 for clip in clips)
    return ClipCounts(len(dialogues), len(cut), tuple(map(len, clips)), tokens, tuple(quarantined))


def _spread(dialogues: Sequence[Dialogue]) -> list[Dialogue]:
    step = max(1, -(-len(dialogues) // MOST_CUT))
    return list(dialogues[::step])
