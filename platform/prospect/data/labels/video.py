"""Labels one video: untimed steps get spans, and the events of its dialogues get frames."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from prospect.data.labels.aligner import OUTSIDE, Alignment, align, support
from prospect.data.labels.blocks import blocks_of
from prospect.data.labels.llm.prompt import MappingRequest
from prospect.data.labels.llm.report import MappingResult
from prospect.data.labels.report import DialogueLabels
from prospect.data.labels.settings import LabelSettings
from prospect.data.labels.spans import Overlap, spans_of
from prospect.data.sources import QuarantinedRecord, place_all
from prospect.dialogue.schema import Annotation, Dialogue, Record, Step
from prospect.dialogue.timeline import CLAMP_S
from prospect.errors import DataError
from prospect.similarity import SentenceEncoder, SentenceSimilarity, SimilaritySettings

FramesOf = Callable[[str], int | None]
"""Number of frames of a video by its id; None if unknown."""


class LabelVideo(Record):
    """The dialogues of one video that share a recipe, and the evidence for the times of its steps."""

    dialogues: tuple[Dialogue, ...]
    """Without their annotations, which are `lines`."""
    lines: tuple[Annotation, ...] = ()
    """Annotation lines of untimed steps; empty where the source timed them."""
    frames: int | None = None
    """Number of frames of its embedding, if there is one."""
    mapping: MappingResult | None = None
    """The language model's answer, if it was asked."""

    @property
    def name(self) -> str:
        return f"{self.dialogues[0].video_id}/{self.dialogues[0].dialogue_id}"

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.dialogues[0].steps

    @property
    def performed(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.performed)

    def request(self, settings: LabelSettings) -> MappingRequest:
        """The request to a language model."""
        names = tuple(step.name for step in self.performed)
        return MappingRequest(self.name, self.dialogues[0].goal, names, self.blocks(settings))

    @property
    def late(self) -> tuple[Annotation, ...]:
        """Lines that start past the end of the video."""
        end = self.dialogues[0].end
        return tuple(line for line in self.lines if end is not None and line.start > end + CLAMP_S)

    def blocks(self, settings: LabelSettings) -> tuple[Annotation, ...]:
        late = set(map(id, self.late))
        lines = [line for line in self.lines if id(line) not in late]
        return blocks_of(lines, settings.aligner.blocks_per_step * len(self.performed))


class VideoLabels(Record):
    """The outcome of labelling a video."""

    steps: tuple[Step, ...] | None
    """The steps with their new spans; None if they are unchanged."""
    labels: tuple[DialogueLabels, ...]
    """One a dialogue."""
    quarantined: tuple[QuarantinedRecord, ...]
    overlaps: tuple[QuarantinedRecord, ...]


def by_video(dialogues: Sequence[Dialogue], frames_of: FramesOf) -> tuple[list[LabelVideo], list[list[int]]]:
    """Group dialogues of the same video, recipe and lines; returns the groups and the indices of their dialogues."""
    places: dict[tuple[Any, ...], list[int]] = {}
    for index, dialogue in enumerate(dialogues):
        key = (dialogue.dataset, dialogue.video_id, dialogue.steps, dialogue.annotations, dialogue.end)
        places.setdefault(key, []).append(index)
    videos = [_video([dialogues[index] for index in indices], frames_of) for indices in places.values()]
    return videos, list(places.values())


def _video(dialogues: Sequence[Dialogue], frames_of: FramesOf) -> LabelVideo:
    first = dialogues[0]
    untimed = any(step.performed for step in first.steps) and not first.has_dst_labels
    bare = tuple(dialogue.model_copy(update={"annotations": ()}) for dialogue in dialogues)
    return LabelVideo(dialogues=bare, lines=first.annotations if untimed else (), frames=frames_of(first.video_id))


def label_video(video: LabelVideo, settings: LabelSettings) -> VideoLabels:
    """Find the spans, place every event on its frame, and count; failures are quarantined with their reason."""
    steps, overlaps = None, []
    problems = [_record(video, "annotations", f"line {line.text!r} starts past its end") for line in video.late]
    if video.lines:
        try:
            steps, found, outside = _timed(video, settings)
            overlaps = [_record(video, "steps", str(overlap)) for overlap in found]
            problems += [_record(video, "annotations", f"line {line.text!r} belongs to no step") for line in outside]
        except DataError as error:
            problems.append(_record(video, error.field or "annotations", str(error)))
    dialogues = [dialogue.model_copy(update={"steps": steps or dialogue.steps}) for dialogue in video.dialogues]
    placed, events = place_all(dialogues, lambda _: video.frames)
    counts = [DialogueLabels.of(timeline) for _, timeline in placed]
    labels = tuple(replace(count, quarantined=count.quarantined + len(problems)) for count in counts)
    return VideoLabels(steps=steps, labels=labels, quarantined=(*problems, *events), overlaps=tuple(overlaps))


def _record(video: LabelVideo, field: str, reason: str) -> QuarantinedRecord:
    return QuarantinedRecord(video.dialogues[0].dataset, video.name, field, reason.removeprefix(f"{field}: "))


def _timed(
    video: LabelVideo, settings: LabelSettings
) -> tuple[tuple[Step, ...], tuple[Overlap, ...], tuple[Annotation, ...]]:
    """All steps of the recipe, of which performed ones have spans; overlaps; and lines that belong to no step."""
    blocks, performed = video.blocks(settings), video.performed
    alignment, source = _alignment(video, blocks, settings)
    timed, overlaps = spans_of(
        performed, blocks, alignment.assignment, alignment.confidences, source, settings.aligner.spans,
        video.dialogues[0].end,
    )  # fmt: skip
    by_id = {step.id: step for step in timed}
    outside = (block for block, step in zip(blocks, alignment.assignment, strict=True) if step == OUTSIDE)
    return tuple(by_id.get(step.id, step) for step in video.steps), overlaps, tuple(outside)


def _alignment(video: LabelVideo, blocks: Sequence[Annotation], settings: LabelSettings) -> tuple[Alignment, str]:
    """The mapping and who made it; confidences are the aligner's, also for a language model's mapping."""
    names = [step.name for step in video.performed]
    encoder = load_encoder(settings.similarity)
    if video.mapping is None or video.mapping.outcome == "aligner":
        return align(names, blocks, encoder, settings.aligner), "aligner"
    if video.mapping.assignment is None:
        raise DataError(f"annotations: {video.mapping.reason}", field="annotations")
    confidences = support(video.mapping.assignment, names, blocks, encoder, settings.aligner)
    asked = bool(video.mapping.key)  # where only one mapping is possible, nobody was
    return Alignment(video.mapping.assignment, confidences), settings.llm.model if asked else "aligner"


@lru_cache(maxsize=1)
def load_encoder(similarity: SimilaritySettings) -> SentenceEncoder:
    """The aligner's sentence encoder, one a process, since it caches texts.

    Raises:
        ConfigError: it is not there.
    """
    return SentenceSimilarity(similarity, "labels.similarity")
