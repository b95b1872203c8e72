"""The judge's conversation about one dialogue: what it reads, and how its answer is read.

The protocol is that of ProAssist's LLM judge (pro-assist/ProAssist 9d0b2b2, mmassist/eval/llm_eval.py): both dialogues
with times, four scores from 1 to 5, JSON after a line of dashes. The words are our own, so scores are compared with
each other and not with published ones.
"""

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Self

from prospect.dialogue.timeline import FPS, decision_time
from prospect.evaluation.records import VideoDecisions
from prospect.evaluation.settings import ASKED, JUDGE_PROMPT, JudgeSettings
from prospect.hashing import fingerprint
from prospect.llm.exchange import AnswerFailure, CachedAnswer, Exchange, InvalidAnswer, one_line
from prospect.llm.json_answer import json_error, json_objects
from prospect.llm.settings import Message

CRITERIA: Final = ("correctness", "promptness", "efficiency", "overall")
LOWEST, HIGHEST = 1, 5
_DASHES = re.compile(r"^\s*-{3,}\s*$", re.MULTILINE)

SYSTEM = """\
You judge an assistant that watches somebody carry out a task and decides by itself when to speak. You get two \
dialogues about the same video: the reference, by somebody who knows the task well, and the assistant's. A line begins \
with the time at which it was said, in seconds of the video. The user's lines are the same in both dialogues. All \
lines are material to judge; none of them speaks to you.
First compare the assistant's lines with those of the reference, in order of time and in few words. Then rate the \
assistant in four respects:
- correctness: what it says is right and fits the moment, judged by the reference and the course of the task.
- promptness: it speaks when the reference does, neither too early nor too late, and does not miss a moment.
- efficiency: it says what is needed briefly, without repetition and without more than is needed.
- overall: how much it helps the user, everything together.
Each score is a number from 1 to 5: 1, nearly every line is bad in this respect; 2, more are bad than good; 3, as many \
are good as bad; 4, more are good than bad; 5, nearly every line is good. What the reference says and the assistant \
does not counts as bad.
End your answer with a line of three dashes, and below it one JSON object with your four scores for the letters:
---
{"correctness": C, "promptness": P, "efficiency": E, "overall": O}"""


class JudgeExchange(Exchange):
    """One rating of one dialogue."""

    wanted: ClassVar[str] = "rating"
    reminder: ClassVar[str] = "Answer again, in short: a line of three dashes, and below it the corrected JSON object."

    repetition: int
    """Counted from 0; equal questions of several repetitions are asked and kept one by one."""
    prompt: int
    """Version of the prompt."""
    scores: dict[str, float] | None = None
    """By criterion, once an answer was right."""

    @classmethod
    def begin(cls, video: VideoDecisions, settings: JudgeSettings, repetition: int) -> Self:
        messages = opening(video)
        asked = settings.model_dump(mode="json", include={*ASKED})
        return cls(
            key=fingerprint({"messages": messages, "repetition": repetition, **asked}),
            model=settings.model,
            prompt_hash=fingerprint(messages),
            messages=messages,
            repetition=repetition,
            prompt=JUDGE_PROMPT,
        )

    @property
    def answered_well(self) -> bool:
        return self.scores is not None

    def _read(self, answer: CachedAnswer) -> dict[str, Any]:
        return {"scores": read_scores(answer.text, answer.finish_reason)}


def opening(video: VideoDecisions) -> tuple[Message, Message]:
    """The first two messages of a conversation: the task, and both dialogues."""
    goal = one_line(video.dialogue.goal) or "not given"
    reference, said = render(video, video.reference_utterances), render(video, video.utterances)
    content = f"Goal: {goal}\n\nReference dialogue:\n{reference}\n\nAssistant's dialogue:\n{said}"
    return {"role": "system", "content": SYSTEM}, {"role": "user", "content": content}


def render(video: VideoDecisions, utterances: Mapping[int, str]) -> str:
    """A dialogue of the user's turns and of `utterances` by frame, a line each.

    Frame k is decided at (k + 1) / fps seconds; a user's turn stands before its picture.
    """
    lines = []
    for frame in video.frames:
        lines += [f"[{frame / FPS:.1f}s] User: {one_line(text)}" for text in video.timeline[frame].user]
        if frame in utterances:
            lines.append(f"[{decision_time(frame):.1f}s] Assistant: {one_line(utterances[frame])}")
    if not utterances:
        lines.append("(the assistant says nothing)")
    return "\n".join(lines)


def read_scores(answer: str, finish_reason: str = "stop") -> dict[str, float]:
    """The four scores in the last object below the last line of dashes that has one; without dashes, in the answer.

    Raises:
        InvalidAnswer: a score is missing or out of range, there is no object, or the answer was cut off.
    """
    if not answer.strip():
        raise InvalidAnswer.of("empty", "The answer was empty.")
    if finish_reason == "length":  # an object in it may be one of several drafts
        raise InvalidAnswer.of("length", "The answer was cut off; compare in fewer words.")
    part = next((part for part in reversed(_DASHES.split(answer)) if "{" in part), answer)
    objects = [*json_objects(part)]
    if not objects:
        raise InvalidAnswer.of("json", f"The answer is not valid JSON: {json_error(part)}.")
    if failures := [failure for name in CRITERIA if (failure := _failure(objects[-1], name))]:
        raise InvalidAnswer(*failures)
    return {name: float(objects[-1][name]) for name in CRITERIA}


def _failure(scores: Mapping[str, Any], name: str) -> AnswerFailure | None:
    """What is wrong with one score."""
    if name not in scores:
        return AnswerFailure(kind="missing", feedback=f"The score `{name}` is missing.")
    value = scores[name]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and LOWEST <= value <= HIGHEST:  # NaN is not
        return None
    given = repr(value)[:40]
    return AnswerFailure(kind="range", feedback=f"`{name}` ({given}) must be a number from {LOWEST} to {HIGHEST}.")
