"""Scores of what utterances are about: the step they name, and the mistakes they step in for.

Both compare an utterance with sentences whose meaning is known, and need the encoder. On the sample corpus the words
themselves tell, and no encoder is asked.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from prospect.corpus.talk import is_correction
from prospect.corpus.tasks import DATASET, named_actions
from prospect.dialogue.schema import Dialogue
from prospect.dialogue.state import StepState, TaskState
from prospect.dialogue.timeline import FPS, decision_frame
from prospect.evaluation.events import nearest_pairs
from prospect.evaluation.measures.turns import said
from prospect.evaluation.records import VideoDecisions
from prospect.evaluation.settings import EvaluationSettings
from prospect.evaluation.tally import Ratio, Sums, precision_recall_f1, ratio
from prospect.similarity import SentenceEncoder

CORRECTION = "correction"
"""Label of an assistant turn that steps in for a mistake, in the sample corpus and in ProAssist's data."""


class KnownSentences:
    """Sentences of one data set that step in for a mistake, and others, from the reference of the scored videos."""

    def __init__(self, dialogues: Iterable[Dialogue], encoder: SentenceEncoder | None) -> None:
        corrections, others = set[str](), set[str]()
        for dialogue in dialogues:
            corrections |= {line.mistake for line in dialogue.annotations if line.mistake}
            others |= {*dialogue.step_names, *(line.text for line in dialogue.annotations)}
            for turn in dialogue.turns:
                if turn.role == "assistant":
                    (corrections if CORRECTION in turn.labels else others).add(turn.text)
        self._corrections = len(corrections)
        self._sentences = [*sorted(corrections), *sorted(others - corrections)]
        self._encoder = encoder

    def __bool__(self) -> bool:
        """Whether anything is known to step in for a mistake."""
        return self._corrections > 0 and self._encoder is not None

    @cached_property
    def _vectors(self) -> NDArray[np.float32]:
        assert self._encoder is not None
        return self._encoder.embed(self._sentences)

    def corrects(self, text: str) -> bool:
        """Whether the known sentence nearest to `text` steps in for a mistake."""
        assert self._encoder is not None
        nearest = int(np.argmax(self._vectors @ self._encoder.embed([text])[0]))
        return nearest < self._corrections


@dataclass(frozen=True)
class Wording:
    """Counts dialogues with what is known of their data sets."""

    encoder: SentenceEncoder | None
    known: Mapping[str, KnownSentences]
    """By data set."""

    @classmethod
    def of(cls, videos: Sequence[VideoDecisions], encoder: SentenceEncoder | None) -> "Wording":
        names = {video.dialogue.dataset for video in videos}
        dialogues = [video.dialogue for video in videos]
        return cls(encoder, {n: KnownSentences((d for d in dialogues if d.dataset == n), encoder) for n in names})

    def count(self, video: VideoDecisions, settings: EvaluationSettings) -> Sums:
        """Sums of one dialogue."""
        return {**self._count_steps(video, settings), **self._count_interventions(video, settings)}

    def _count_steps(self, video: VideoDecisions, settings: EvaluationSettings) -> Sums:
        spoken = said(video, settings) if video.dialogue.has_dst_labels else {}
        states = video.timeline.states(settings.state_policy)
        named = {frame: self._named_steps(video, text, settings) for frame, text in spoken.items()}
        about = {frame: steps for frame, steps in named.items() if steps is not None}
        right = [frame for frame, steps in about.items() if steps and steps <= _relevant(states, frame)]
        return {"about_steps": len(about), "about_steps_right": len(right)}

    def _named_steps(self, video: VideoDecisions, text: str, settings: EvaluationSettings) -> frozenset[int] | None:
        """Indices of the steps that an utterance names, empty where it names one of no recipe; None: it names none."""
        names = video.dialogue.step_names
        if video.dialogue.dataset == DATASET:
            actions = named_actions(text)
            if not actions:
                return None
            found = [names.index(name) if name in names else -1 for name in sorted(actions)]
            return frozenset() if -1 in found else frozenset(found)
        if self.encoder is None:
            return None
        vectors = self.encoder.embed([text, *names])
        cosine = vectors[1:] @ vectors[0]
        return frozenset({int(np.argmax(cosine))}) if cosine.max() > settings.similarity_threshold else None

    def _count_interventions(self, video: VideoDecisions, settings: EvaluationSettings) -> Sums:
        known = self.known[video.dialogue.dataset]
        drawn = video.dialogue.dataset == DATASET
        corrects = is_correction if drawn else known.corrects
        scored = drawn or bool(known)
        frames = [frame for frame, text in said(video, settings).items() if scored and corrects(text)]
        reference = _mistakes(video) if scored else []
        return {
            "interventions_generated": len(frames),
            "interventions_reference": len(reference),
            "interventions_matched": len(nearest_pairs(sorted(frames), reference, settings.event_tolerance * FPS)),
        }


def _relevant(states: Sequence[TaskState], frame: int) -> frozenset[int]:
    """Steps that an utterance may be about at a frame: in progress, next in the recipe, and completed last."""
    now = states[min(frame, len(states) - 1)].steps
    busy = {step for step, state in enumerate(now) if state is StepState.IN_PROGRESS}
    upcoming = [step for step, state in enumerate(now) if state is StepState.NOT_STARTED][:1]
    return frozenset({*busy, *upcoming, *_completed_last(states, frame)})


def _completed_last(states: Sequence[TaskState], frame: int) -> list[int]:
    now = states[min(frame, len(states) - 1)].steps
    done = [step for step, state in enumerate(now) if state is StepState.COMPLETED]
    for earlier in range(min(frame, len(states) - 1) - 1, -1, -1):
        before = states[earlier].steps
        if fresh := [step for step in done if before[step] is not StepState.COMPLETED]:
            return fresh
    return done[-1:]


def _mistakes(video: VideoDecisions) -> list[int]:
    """Frames at which the reference steps in: its corrections, else the starts of the mistakes that were annotated."""
    dialogue, span = video.dialogue, video.frames
    if any(turn.role == "assistant" and CORRECTION in turn.labels for turn in dialogue.turns):
        return sorted(frame for frame in video.reference_utterances if CORRECTION in video.timeline[frame].labels)
    found = {decision_frame(line.start) for line in dialogue.annotations if line.mistake}
    return sorted(frame for frame in found if frame in span)


METRICS: dict[str, Ratio] = {
    "step_correctness": lambda t: ratio(t["about_steps_right"], t["about_steps"]),
    "step_naming_rate": lambda t: ratio(t["about_steps"], t["generated"]),
    **precision_recall_f1(
        "intervention", "interventions_matched", "interventions_generated", "interventions_reference"
    ),
}
"""`step_correctness`: of utterances that name a step, the share that names one which the reference's state makes
relevant: in progress, next, or completed last. A step is named by the nearest step name more alike than the threshold;
on the sample corpus by its very words. `intervention_` scores, in time, the utterances whose nearest known sentence of
the data set steps in for a mistake (mistake precision, recall and F1 of Qualcomm Interactive Cooking, 2511.21998)."""
