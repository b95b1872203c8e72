"""Context strategies: what replaces a session's context when it is full (docs/architecture.md#context-strategies).

Our strategies make a context that a training clip could start with: they keep the prompt, and every key is at its
position. With `context.published` they do what ProAssist published, for comparison: `drop_all` keeps nothing,
`drop_middle` leaves keys at their old positions, summaries follow the prompt of the session's opening.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from prospect.dialogue.prompt import Context, ContextSettings
from prospect.dialogue.sequence import SequenceBuilder, user_block
from prospect.dialogue.state import StatePolicy, StepState, TaskState, parse_delta
from prospect.streaming.types import SessionSpec


@dataclass(frozen=True)
class ContextInputs:
    """What a new context can be made from. F frames were decided since the last context was made."""

    opening: TaskState
    """The state that the session opened with, or that a client last set."""
    state: TaskState
    said: Sequence[tuple[str, str]]
    """(role, text) of the last utterances, oldest first."""
    num_tail: int
    """Number of last frames that can be shown again."""
    summary: str | None = None
    """Summary of the progress, if the model was asked for one."""
    lengths: Sequence[int] = ()
    """[F] tokens of each frame with its events."""
    states: Sequence[TaskState] = ()
    """[F] the state before each frame."""
    room: int = 0
    """Tokens that a context may have beside its prompt."""


@dataclass(frozen=True)
class ContextPlan:
    """What a new context shows."""

    state: TaskState
    utterances: tuple[tuple[str, str], ...] = ()
    tail_frames: int = 0
    """Number of last frames shown again, undecided and without their events."""
    summary: str | None = None
    kept_frames: int = 0
    """Number of last frames that stay as they were decided, with their events; `state` is the one before them."""
    prompt: bool = True


@dataclass(frozen=True)
class Strategy:
    """What one context strategy does.

    Attributes:
        plan: plans the next context.
        asks: whether the model is asked for a summary first: of what it watched, or after it is told the state.
        stateless: whether each frame is decided by itself after the prompt.
        cuts: whether keys are removed from the middle, and later keys keep their old positions.
        shows_state: whether the context always shows the tracked state.
        reserve: least tokens to leave free.
    """

    plan: Callable[[ContextSettings, ContextInputs], ContextPlan]
    asks: Literal["", "watched", "state"] = ""
    stateless: bool = False
    cuts: bool = False
    shows_state: bool = True
    reserve: int = 0


def _prompt(settings: ContextSettings, seen: ContextInputs) -> ContextPlan:
    return ContextPlan(seen.state)


def _opening_prompt(settings: ContextSettings, seen: ContextInputs) -> ContextPlan:
    return ContextPlan(seen.opening)


def _opening_prompt_and_summary(settings: ContextSettings, seen: ContextInputs) -> ContextPlan:
    return ContextPlan(seen.opening, summary=seen.summary)


def _nothing(settings: ContextSettings, seen: ContextInputs) -> ContextPlan:
    return ContextPlan(seen.state, prompt=False)


def _refresh(settings: ContextSettings, seen: ContextInputs) -> ContextPlan:
    kept = tuple(seen.said[max(0, len(seen.said) - settings.last_utterances) :])
    return ContextPlan(seen.state, kept, min(seen.num_tail, settings.max_tail_frames))


def _refresh_and_summary(settings: ContextSettings, seen: ContextInputs) -> ContextPlan:
    return replace(_refresh(settings, seen), summary=seen.summary)


def _last_tokens(settings: ContextSettings, seen: ContextInputs) -> ContextPlan:
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


def plan_context(settings: ContextSettings, seen: ContextInputs, patched: bool) -> ContextPlan:
    """Plan the next context; every strategy shows a state that a client has set."""
    strategy = strategy_of(settings)
    if patched and not strategy.shows_state:
        return (_prompt if strategy.stateless else _refresh)(settings, seen)
    return strategy.plan(settings, seen)


def plan_opening(settings: ContextSettings, seen: ContextInputs) -> ContextPlan:
    """Plan a session's first context, which shows everything that the session was opened with."""
    strategy = strategy_of(settings)
    if strategy.stateless:
        return strategy.plan(settings, seen)
    return (_refresh_and_summary if strategy.asks else _refresh)(settings, seen)


def longest_tail(settings: ContextSettings) -> int:
    """Return the most frames that a context of this strategy shows again."""
    strategy = strategy_of(settings)
    return 0 if strategy.stateless or strategy.plan is _prompt else settings.max_tail_frames


def summary_line(settings: ContextSettings) -> int:
    """Return the most tokens that a summary and its label take in a context of this strategy."""
    return settings.max_summary_tokens + 16 if strategy_of(settings).asks else 0


def frames_within(lengths: Sequence[int], budget: int) -> int:
    """Return how many of the last frames, of `lengths` tokens each, fit into `budget` tokens."""
    count = 0
    while count < len(lengths) and lengths[-1 - count] <= budget:
        budget -= lengths[-1 - count]
        count += 1
    return count


def frame_reserve(builder: SequenceBuilder) -> int:
    """Return the most tokens of one frame without the user's text: image, delta block, utterance block."""
    settings = builder.settings
    return builder.tokens_per_frame + (settings.max_delta_tokens + 2) + (settings.max_utterance_tokens + 2)


def full_reserve(builder: SequenceBuilder, num_steps: int) -> int:
    """Return the tokens to keep free for one frame without the user's text, and for a summary after it."""
    strategy, needed = strategy_of(builder.settings), frame_reserve(builder)
    if strategy.asks:
        needed += len(builder.summary_request()) + builder.settings.max_summary_tokens + 2
    if strategy.asks == "state" and num_steps:
        uniform = [TaskState((state,) * num_steps) for state in StepState]  # any other state takes fewer tokens to tell
        needed += sum(len(user_block(builder.vocabulary, describe_state(state))) for state in uniform)
    return max(needed, strategy.reserve)


def summary_question(builder: SequenceBuilder, strategy: Strategy, state: TaskState) -> list[int]:
    """Return the tokens that ask for a summary: the state, if the strategy tells it, and the request."""
    if strategy.asks == "state" and len(state):
        return user_block(builder.vocabulary, describe_state(state)) + builder.summary_request()
    return builder.summary_request()


def describe_state(state: TaskState) -> str:
    """Describe a state in words, such as `Completed: S1, S2. In progress: S3. Next: S4.`."""

    def named(wanted: StepState) -> list[str]:
        return [f"S{number}" for number, step in enumerate(state.steps, 1) if step is wanted]

    parts = {
        "Completed": named(StepState.COMPLETED),
        "In progress": named(StepState.IN_PROGRESS),
        "Next": named(StepState.NOT_STARTED)[:1],
    }
    return " ".join(f"{label}: {', '.join(steps)}." for label, steps in parts.items() if steps)


def oracle_state(spec: SessionSpec, frame: int, policy: StatePolicy) -> TaskState:
    """Return the reference's state before `frame`."""
    state = spec.state or TaskState.initial(len(spec.steps))
    for decided, delta in spec.oracle:
        if decided < frame:
            state, _ = state.apply(parse_delta(delta), policy)
    return state


def session_context(builder: SequenceBuilder, spec: SessionSpec, plan: ContextPlan, room: int | None = None) -> Context:
    """Build a session's context as planned; its text and tail take `room` tokens at most."""
    if not plan.prompt:
        return Context((), 0, 0, (-1,) * len(spec.steps), "")
    largest = builder.settings.max_context_tokens + plan.tail_frames * builder.tokens_per_frame
    if room is not None and room >= largest:
        room = None  # as where it is not asked for
    return builder.context(
        goal=spec.goal,
        steps=tuple(spec.steps),
        state=plan.state,
        knowledge=spec.knowledge,
        summary=plan.summary,
        utterances=tuple((role, text) for role, text in plan.utterances),
        tail_frames=plan.tail_frames,
        room=room,
    )
