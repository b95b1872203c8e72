"""When a session's context is rebuilt, and from what: the context strategies (DESIGN 4.9)."""

from collections.abc import Callable
from dataclasses import dataclass

from prospect.dialogue.prompt import Context, ContextSettings, build_context
from prospect.dialogue.state import TaskState
from prospect.dialogue.vocabulary import Vocabulary
from prospect.streaming.outputs import SessionSpec


@dataclass(frozen=True)
class ContextPlan:
    """What a rebuilt context repeats: (role, text) pairs, and how many frames as undecided tail."""

    utterances: tuple[tuple[str, str], ...]
    tail_frames: int


Strategy = Callable[[ContextSettings, list[tuple[str, str]], int], ContextPlan]
"""(settings, everything said so far, frames seen so far) -> plan."""


def _state_refresh(settings: ContextSettings, said: list[tuple[str, str]], frames_seen: int) -> ContextPlan:
    kept = tuple(said[max(0, len(said) - settings.last_utterances) :])
    return ContextPlan(kept, min(frames_seen, settings.max_tail_frames))


def _drop_all(settings: ContextSettings, said: list[tuple[str, str]], frames_seen: int) -> ContextPlan:
    return ContextPlan((), 0)


STRATEGIES: dict[str, Strategy] = {"state_refresh": _state_refresh, "drop_all": _drop_all}


def frame_reserve(settings: ContextSettings, tokens_per_frame: int) -> int:
    """Tokens that one frame can need at most beside the user's text: image, delta block, utterance block."""
    return tokens_per_frame + (settings.max_delta_tokens + 2) + (settings.max_utterance_tokens + 2)


def session_context(
    vocabulary: Vocabulary,
    spec: SessionSpec,
    state: TaskState,
    plan: ContextPlan,
    settings: ContextSettings,
    tokens_per_frame: int,
    room: int | None = None,
) -> Context:
    """The context of a live session; `room` is what text and tail may take together, in tokens."""
    limit = settings.max_context_tokens
    if room is not None:
        limit = min(limit, room - plan.tail_frames * tokens_per_frame)
    return build_context(
        vocabulary,
        goal=spec.goal,
        steps=spec.steps,
        state=state,
        knowledge=spec.knowledge,
        utterances=plan.utterances,
        tail_frames=plan.tail_frames,
        tokens_per_frame=tokens_per_frame,
        max_tokens=limit,
        recipe=settings.recipe,
    )
