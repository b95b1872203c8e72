"""What happens when a session's context is full: the context strategies (docs/architecture.md#context-strategies).

Ours show a context that a training clip could start with: every key stands at its position, and the prompt stays.
`context.published` has what the earlier code does instead, for comparison: nothing but the frames after `drop_all`,
keys at their old positions after `drop_middle`, the prompt of the session's opening after a summary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from prospect.dialogue.prompt import Context, ContextSettings
from prospect.dialogue.sequence import SequenceBuilder, user_block
from prospect.dialogue.state import StatePolicy, StepState, TaskState, parse_delta
from prospect.streaming.types import SessionSpec


@dataclass(frozen=True)
class Seen:
    """What there is to make a context from. F frames were decided since the last one was made."""

    opening: TaskState
    """The state that the session opened with, or that it was last set to from outside."""
    state: TaskState
    said: Sequence[tuple[str, str]]
    """(role, text) of the last utterances, oldest first."""
    num_tail: int
    """Frames at hand that can be shown again."""
    summary: str | None = None
    """Of the progress, where one was asked for."""
    lengths: Sequence[int] = ()
    """[F] tokens of each, its events included."""
    states: Sequence[TaskState] = ()
    """[F] the state before each."""
    room: int = 0
    """Tokens that a context has for more than its prompt."""


@dataclass(frozen=True)
class ContextPlan:
    """What a rebuilt context shows."""

    state: TaskState
    utterances: tuple[tuple[str, str], ...] = ()
    tail_frames: int = 0
    """Frames shown again, undecided and without what happened at them."""
    summary: str | None = None
    kept_frames: int = 0
    """Frames that stay as they were decided, with what happened at them; `state` is the one before them."""
    prompt: bool = True


@dataclass(frozen=True)
class Strategy:
    """One way to go on when the context is full.

    Attributes:
        plan: what the next context shows.
        asks: whether the model is asked for a summary of the progress first: of what it watched, or told the state.
        stateless: whether every frame is decided by itself, behind the prompt alone.
        cuts: whether keys are taken out of the middle, and those behind keep their old positions.
        shows_state: whether the state that the context shows is always the tracked one.
        reserve: tokens that it leaves free at least.
    """

    plan: Callable[[ContextSettings, Seen], ContextPlan]
    asks: Literal["", "watched", "state"] = ""
    stateless: bool = False
    cuts: bool = False
    shows_state: bool = True
    reserve: int = 0


def _prompt(settings: ContextSettings, seen: Seen) -> ContextPlan:
    return ContextPlan(seen.state)


def _opening_prompt(settings: ContextSettings, seen: Seen) -> ContextPlan:
    return ContextPlan(seen.opening)


def _opening_prompt_and_summary(settings: ContextSettings, seen: Seen) -> ContextPlan:
    return ContextPlan(seen.opening, summary=seen.summary)


def _nothing(settings: ContextSettings, seen: Seen) -> ContextPlan:
    return ContextPlan(seen.state, prompt=False)


def _refresh(settings: ContextSettings, seen: Seen) -> ContextPlan:
    kept = tuple(seen.said[max(0, len(seen.said) - settings.last_utterances) :])
    return ContextPlan(seen.state, kept, min(seen.num_tail, settings.max_tail_frames))


def _refresh_and_summary(settings: ContextSettings, seen: Seen) -> ContextPlan:
    return replace(_refresh(settings, seen), summary=seen.summary)


def _last_tokens(settings: ContextSettings, seen: Seen) -> ContextPlan:
    kept = frames_within(seen.lengths, min(settings.keep_last_tokens, seen.room))
    return ContextPlan(seen.states[-kept], kept_frames=kept) if kept else ContextPlan(seen.state)


_OURS = {
    "none": Strategy(_prompt, stateless=True),
    "drop_all": Strategy(_prompt),
    "drop_middle": Strategy(_last_tokens, shows_state=False),
    "summarize_and_drop": Strategy(_refresh_and_summary, asks="watched"),
    "summarize_with_dst": Strategy(_refresh_and_summary, asks="state"),
    "state_refresh": Strategy(_refresh),
}

_PUBLISHED = {
    "none": Strategy(_opening_prompt, stateless=True, shows_state=False),
    "drop_all": Strategy(_nothing, shows_state=False, reserve=128),
    "drop_middle": Strategy(_nothing, cuts=True, shows_state=False, reserve=128),
    "summarize_and_drop": Strategy(_opening_prompt_and_summary, asks="watched", shows_state=False, reserve=128),
    "summarize_with_dst": Strategy(_opening_prompt_and_summary, asks="state", shows_state=False, reserve=128),
    "state_refresh": Strategy(_prompt, reserve=512),
}


def strategy_of(settings: ContextSettings) -> Strategy:
    return (_PUBLISHED if settings.published else _OURS)[settings.strategy]


def plan_context(settings: ContextSettings, seen: Seen, patched: bool) -> ContextPlan:
    """What the next context shows; a state that was set from outside is shown by every strategy."""
    strategy = strategy_of(settings)
    if patched and not strategy.shows_state:
        return (_prompt if strategy.stateless else _refresh)(settings, seen)
    return strategy.plan(settings, seen)


def plan_opening(settings: ContextSettings, seen: Seen) -> ContextPlan:
    """What a session's first context shows: everything that it was opened with."""
    strategy = strategy_of(settings)
    if strategy.stateless:
        return strategy.plan(settings, seen)
    return (_refresh_and_summary if strategy.asks else _refresh)(settings, seen)


def longest_tail(settings: ContextSettings) -> int:
    """Frames that a context of this strategy shows again at most."""
    strategy = strategy_of(settings)
    return 0 if strategy.stateless or strategy.plan is _prompt else settings.max_tail_frames


def summary_line(settings: ContextSettings) -> int:
    """Tokens that a summary takes in a context of this strategy at most, its label included."""
    return settings.max_summary_tokens + 16 if strategy_of(settings).asks else 0


def frames_within(lengths: Sequence[int], budget: int) -> int:
    """How many of the last frames, of so many tokens each, `budget` tokens hold."""
    count = 0
    while count < len(lengths) and lengths[-1 - count] <= budget:
        budget -= lengths[-1 - count]
        count += 1
    return count


def frame_reserve(builder: SequenceBuilder) -> int:
    """Tokens that one frame can need at most beside the user's text: image, delta block, utterance block."""
    settings = builder.settings
    return builder.tokens_per_frame + (settings.max_delta_tokens + 2) + (settings.max_utterance_tokens + 2)


def full_reserve(builder: SequenceBuilder, num_steps: int) -> int:
    """Tokens that are free before a frame and the user's text: the frame's, and those of a summary behind it."""
    strategy, needed = strategy_of(builder.settings), frame_reserve(builder)
    if strategy.asks:
        needed += len(builder.summary_request()) + builder.settings.max_summary_tokens + 2
    if strategy.asks == "state" and num_steps:
        uniform = [TaskState((state,) * num_steps) for state in StepState]  # to tell any other state takes less
        needed += sum(len(user_block(builder.vocabulary, describe_state(state))) for state in uniform)
    return max(needed, strategy.reserve)


def summary_question(builder: SequenceBuilder, strategy: Strategy, state: TaskState) -> list[int]:
    """What asks for a summary: the state, where the strategy tells it, and the request."""
    if strategy.asks == "state" and len(state):
        return user_block(builder.vocabulary, describe_state(state)) + builder.summary_request()
    return builder.summary_request()


def describe_state(state: TaskState) -> str:
    """Such as `Completed: S1, S2. In progress: S3. Next: S4.`."""

    def named(wanted: StepState) -> list[str]:
        return [f"S{number}" for number, step in enumerate(state.steps, 1) if step is wanted]

    parts = {
        "Completed": named(StepState.COMPLETED),
        "In progress": named(StepState.IN_PROGRESS),
        "Next": named(StepState.NOT_STARTED)[:1],
    }
    return " ".join(f"{label}: {', '.join(steps)}." for label, steps in parts.items() if steps)


def oracle_state(spec: SessionSpec, frame: int, policy: StatePolicy) -> TaskState:
    """The reference's state before `frame`."""
    state = spec.state or TaskState.initial(len(spec.steps))
    for decided, delta in spec.oracle:
        if decided < frame:
            state, _ = state.apply(parse_delta(delta), policy)
    return state


def session_context(builder: SequenceBuilder, spec: SessionSpec, plan: ContextPlan, room: int | None = None) -> Context:
    """The context of a live session; `room` is what text and tail may take together, in tokens."""
    if not plan.prompt:
        return Context((), 0, 0, (-1,) * len(spec.steps), "")
    return builder.context(
        goal=spec.goal,
        steps=spec.steps,
        state=plan.state,
        knowledge=spec.knowledge,
        summary=plan.summary,
        utterances=plan.utterances,
        tail_frames=plan.tail_frames,
        room=room,
    )
