"""Writes the dialogue of a script; the assistant's words follow from recipe, state, picture and question."""

import random
from collections.abc import Iterator

from prospect.corpus.script import Script, ScriptSpan, UserMove
from prospect.corpus.tasks import DATASET, TOOLS, Task
from prospect.dialogue.schema import Dialogue, Step, Turn
from prospect.dialogue.state import StepState, TaskState

_USER_TEXTS: dict[UserMove, tuple[str, ...]] = {
    "next": ("What should I do next?", "What comes next?"),
    "tool": ("Which tool do I need?", "What tool should I use?"),
    "acknowledge": ("Okay.", "Got it."),
}

_CORRECTION = "No, leave"


def is_correction(text: str) -> bool:
    """Whether an assistant's words step in for a mistake."""
    return text.startswith(_CORRECTION)


def write_dialogue(script: Script, video_id: str, split: str, rng: random.Random) -> Dialogue:
    """The record of one video."""
    task = script.task
    names = [work.name for work in task.recipe]
    spans = {span.step: span for span in script.spans if span.step is not None}
    return Dialogue(
        dataset=DATASET,
        video_id=video_id,
        dialogue_id=f"{video_id}_{script.user_type}",
        user_type=script.user_type,
        split=split,
        goal=task.goal,
        knowledge="\n".join([task.goal, *(f"{number}. {name}" for number, name in enumerate(names, 1))]),
        steps=tuple(
            Step(id=f"S{index + 1}", name=name, start=spans[index].start, end=spans[index].end, source="drawn")
            for index, name in enumerate(names)
        ),
        turns=tuple(sorted(_turns(script, rng), key=lambda turn: turn.time)),
        duration=script.duration,
    )


def _turns(script: Script, rng: random.Random) -> Iterator[Turn]:
    """Grouped by what causes them; sorting by time is stable, so a question stays before its answer."""
    task, goal = script.task, script.task.goal
    yield Turn(role="user", time=script.goal_time, text=f"I want to {goal[0].lower()}{goal[1:]}.")
    upcoming = _upcoming(task, _state_at(script, script.goal_time))
    yield _assistant(script, script.goal_time, f"First, {upcoming}.", "responsive|instruction")
    for time, move in script.user_moves:
        yield Turn(role="user", time=time, text=rng.choice(_USER_TEXTS[move]))
        if move != "acknowledge":
            yield _answer(script, time, move)
    for span in script.spans:
        yield _remark(span, script)


def _remark(span: ScriptSpan, script: Script) -> Turn:
    """The assistant's own initiative: at a step's end, and at a reach for a wrong object."""
    task = script.task
    if span.step is None:
        upcoming = _upcoming(task, _state_at(script, span.start))
        text = f"{_CORRECTION} the {span.work.object}. {_sentence(upcoming)}."
        return _assistant(script, span.start, text, "initiative|correction")
    state = _state_at(script, span.end)
    if (upcoming := _upcoming(task, state)) is not None:
        return _assistant(script, span.end, f"Good. Next, {upcoming}.", "initiative|instruction,feedback")
    if StepState.IN_PROGRESS in state.steps:
        return _assistant(script, span.end, "Good. This is the last step.", "initiative|feedback,info_sharing")
    return _assistant(script, span.end, "Good. You are all done.", "initiative|feedback")


def _answer(script: Script, time: float, move: UserMove) -> Turn:
    task, state = script.task, _state_at(script, time)
    busy = next((i for i, step in enumerate(state.steps) if step is StepState.IN_PROGRESS), None)
    upcoming = _upcoming(task, state)
    if move == "tool":
        work = task.recipe[state.steps.index(StepState.NOT_STARTED) if busy is None else busy]
        return _assistant(script, time, f"Use the {TOOLS[work.action]}.", "responsive|info_sharing")
    if upcoming is None:
        return _assistant(script, time, "Nothing, this is the last step.", "responsive|info_sharing")
    text = f"{_sentence(upcoming)}." if busy is None else f"After this, {upcoming}."
    return _assistant(script, time, text, "responsive|instruction")


def _upcoming(task: Task, state: TaskState) -> str | None:
    """The first step of the recipe that has not started, such as `wash the ball`."""
    if StepState.NOT_STARTED not in state.steps:
        return None
    return _lower(task.recipe[state.steps.index(StepState.NOT_STARTED)].name)


def _lower(name: str) -> str:
    return name[0].lower() + name[1:]


def _sentence(text: str | None) -> str:
    return "" if text is None else text[0].upper() + text[1:]


def _state_at(script: Script, time: float) -> TaskState:
    steps = [StepState.NOT_STARTED] * len(script.task.recipe)
    for span in script.spans:
        if span.step is not None and span.start <= time:
            steps[span.step] = StepState.COMPLETED if span.end <= time else StepState.IN_PROGRESS
    return TaskState(tuple(steps))


def _assistant(script: Script, time: float, text: str, labels: str) -> Turn:
    return Turn(role="assistant", time=time, text=text, labels=labels, progress=_progress(script, time))


def _progress(script: Script, time: float) -> str:
    """A summary at `time`, such as "7.5 seconds in. Done: wash the ball. Now: nothing. Next: cut the star."."""
    state = _state_at(script, time)
    done, now = (
        ", ".join(_lower(work.name) for work, step in zip(script.task.recipe, state.steps, strict=True) if step is kind)
        for kind in (StepState.COMPLETED, StepState.IN_PROGRESS)
    )
    upcoming = _upcoming(script.task, state)
    return f"{time:g} seconds in. Done: {done or 'nothing'}. Now: {now or 'nothing'}. Next: {upcoming or 'nothing'}."
