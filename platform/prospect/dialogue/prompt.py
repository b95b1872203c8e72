"""What stands before the first decided frame.

`build_context` is the only way in which a context is made: first frame of a video, a clip that starts in the
middle, a refresh, a resumed session (docs/architecture.md#contexts).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field

from prospect.dialogue.recipe import read_recipe
from prospect.dialogue.state import StepState, TaskState
from prospect.dialogue.timeline import FPS
from prospect.dialogue.vocabulary import Vocabulary
from prospect.earlier import read_saved
from prospect.errors import ConfigError, DataError
from prospect.settings import Settings

SYSTEM_PROMPT = (
    "You are a proactive assistant. Watch the user's actions frame by frame, "
    "keep track of the task's steps, and speak when it helps."
)

SUMMARY_REQUEST = "Please summarize the progress."
"""The user turn behind which a summary of the progress stands (`sequence.summary_request`)."""


StrategyName = Literal["none", "drop_all", "drop_middle", "summarize_and_drop", "summarize_with_dst", "state_refresh"]
"""`none`: every frame by itself behind the prompt. `drop_all`: the prompt alone stays. `drop_middle`: the prompt and
the last frames stay. `summarize_and_drop` and `summarize_with_dst`: as `state_refresh`, with the model's own summary of
the progress, for which the second tells it the state. `state_refresh`: the prompt with the state, the last utterances
and the last seconds of frames, undecided."""


class ContextSettings(Settings):
    """Sizes of the context, shared by training clips and live sessions."""

    strategy: StrategyName = "state_refresh"
    """What happens when a session's context is full."""
    published: bool = False
    """Do it as the earlier code does, for comparison; not what clips are trained for."""
    keep_last_tokens: int = Field(default=512, ge=0)
    """Tokens of the last frames, with what happened at them, that `drop_middle` keeps."""
    max_seq_len: int = Field(default=4096, ge=64)
    """Tokens that a sequence may hold: context, frames and events together."""
    layout: Literal[1, 2] = 2
    """Turn that holds the recipe with its state: 2 the system turn, 1 the user turn. A trained model keeps its own."""
    recipe: bool = True
    """Show the steps, each with its state. Without them there is no state head to train or to read off; deltas are
    then written about steps that the model has to guess."""
    max_context_tokens: int = Field(default=1024, ge=32)
    """Tokens of the context's text; a longer recipe is windowed around the current steps."""
    last_utterances: int = Field(default=4, ge=0)
    """Utterances that a refreshed context repeats."""
    tail_seconds: float = Field(default=5.0, ge=0)
    """Seconds of frames that a refreshed context shows again, undecided."""
    max_utterance_tokens: int = Field(default=100, ge=1)
    """Longest utterance that is generated."""
    max_delta_tokens: int = Field(default=48, ge=8)
    """Longest DST delta that is generated."""
    max_summary_tokens: int = Field(default=512, ge=1)
    """Longest summary of the progress, where summaries are trained; no clip ends with a longer one."""

    @property
    def max_tail_frames(self) -> int:
        """`tail_seconds` in frames."""
        return round(self.tail_seconds * FPS)

    @classmethod
    def of_model(cls, trained: Mapping[str, Any]) -> Self:
        """What a model was trained with, from its manifest; a model of earlier versions has their defaults."""
        return cls.model_validate(read_saved("context", trained))

    def over(self, trained: Mapping[str, Any]) -> Self:
        """What a model was trained with, but for what was set here.

        Raises:
            ConfigError: `layout` was set to another than the model's.
        """
        own = self.of_model(trained)
        if "layout" in self.model_fields_set and self.layout != own.layout:
            raise ConfigError(
                f"`context.layout` is {self.layout}, but the model was trained with {own.layout}: leave it out.",
                field="context.layout",
            )
        return self.model_validate({**own.model_dump(), **self.model_dump(exclude_unset=True)})


@dataclass(frozen=True)
class Context:
    """A context as tokens: the text, then the tail's image tokens.

    Attributes:
        ids: text and tail, `num_text + tail_frames * I` tokens.
        step_positions: for every step of the recipe, the position of its line's last token, or -1 where
            the window leaves the step out or no recipe is shown.
    """

    ids: tuple[int, ...]
    num_text: int
    tail_frames: int
    step_positions: tuple[int, ...]
    text: str


def build_context(
    vocabulary: Vocabulary,
    *,
    goal: str,
    steps: Sequence[str],
    state: TaskState,
    knowledge: str = "",
    summary: str | None = None,
    utterances: Sequence[tuple[str, str]] = (),
    max_tokens: int | None = None,
    recipe: bool = True,
    layout: int,
) -> Context:
    """Renders the context's text from what is known, without a tail.

    Args:
        vocabulary: the model's tokens.
        goal: what the user wants to do; may be empty.
        steps: recipe step names; may be empty.
        state: one entry a step.
        knowledge: background text; its numbered lines are left out where `steps` holds them.
        summary: progress summary of what came before; left out where nothing else makes the text fit.
        utterances: (role, text) of the last utterances, oldest first.
        max_tokens: limit of the text's tokens. Steps far from the current ones are folded into a line
            that says how many; utterances go before steps do.
        recipe: False shows no step at all, neither in lines nor in `knowledge`.
        layout: 2 writes the recipe's lines into the system turn, 1 into the user turn.

    Raises:
        DataError: the text does not fit even with one step shown, or `state` and `steps` differ in length.
    """
    if len(steps) != len(state):
        raise DataError(f"state: has {len(state)} steps, the recipe has {len(steps)}", field="state")
    for shown, num_utterances, radius in _shrinking(summary, len(utterances), len(steps)):
        parts = _Parts(
            goal, tuple(steps), state, knowledge, shown, tuple(utterances[len(utterances) - num_utterances :]), recipe
        )
        known = parts.known(vocabulary)
        lines, line_ends = parts.recipe_lines(vocabulary, radius)
        messages = (SYSTEM_PROMPT + lines, known) if layout == 2 else (SYSTEM_PROMPT, known + lines)
        chat = vocabulary.chat.render(*messages)
        if max_tokens is None or len(chat.ids) <= max_tokens:
            holder = messages[0] if layout == 2 else messages[1]
            start = chat.text.index(holder) + len(holder) - len(lines)
            positions = tuple(
                -1 if end is None else _token_covering(chat.offsets, start + end - 1) for end in line_ends
            )
            return Context(chat.ids, len(chat.ids), 0, positions, chat.text)
    raise DataError(
        f"context: goal and knowledge take {len(chat.ids)} tokens with one step shown, the limit is {max_tokens}; "
        "shorten them or raise context.max_context_tokens",
        field="context",
    )


def _shrinking(summary: str | None, num_utterances: int, num_steps: int) -> list[tuple[str | None, int, int]]:
    """(summary, utterances kept, steps shown on either side of the current ones), from all to almost nothing."""
    attempts = [(kept, num_steps) for kept in range(num_utterances, -1, -1)]
    radius = num_steps
    while radius > 0:
        radius //= 2
        attempts.append((0, radius))
    return [(shown, *attempt) for shown in ([summary, None] if summary else [None]) for attempt in attempts]


def _token_covering(offsets: Sequence[tuple[int, int]], character: int) -> int:
    for position, (start, end) in enumerate(offsets):
        if start <= character < end:
            return position
    raise AssertionError(f"no token covers character {character}")


@dataclass(frozen=True)
class _Parts:
    goal: str
    steps: tuple[str, ...]
    state: TaskState
    knowledge: str
    summary: str | None
    utterances: tuple[tuple[str, str], ...]
    recipe: bool

    def known(self, vocabulary: Vocabulary) -> str:
        """Goal, knowledge, progress and the last utterances."""
        clean = vocabulary.neutralise
        lines: list[str] = [f"Task: {clean(self.goal).strip() or 'not stated'}"]
        if knowledge := self._background():
            lines.append(f"Task knowledge: {clean(knowledge).rstrip()}")
        if self.summary:
            lines.append(f"Progress: {clean(self.summary).strip()}")
        if self.utterances:
            lines.append("Last said:")
            lines += [f"{role}: {clean(text).strip()}" for role, text in self.utterances]
        return "\n".join(lines)

    def recipe_lines(self, vocabulary: Vocabulary, radius: int) -> tuple[str, list[int | None]]:
        """The steps with their states, and for each step the character after its line's end (None: not shown)."""
        ends: list[int | None] = [None] * len(self.steps)
        if not (self.steps and self.recipe):
            return "", ends
        shown = self._window(radius)
        lines = "\nSteps:" + self._folded(range(shown.start), "earlier")
        for step in shown:
            name = " ".join(vocabulary.neutralise(self.steps[step]).split())
            # The name comes last: the line's last token stands for the step in the state head.
            lines += f"\nS{step + 1} ({self.state.steps[step].label}) {name}".rstrip()
            ends[step] = len(lines)
        return lines + self._folded(range(shown.stop, len(self.steps)), "later"), ends

    def _background(self) -> str:
        if not self.steps:
            return self.knowledge.strip()
        return "\n".join(read_recipe(self.knowledge).rest)

    def _window(self, radius: int) -> range:
        """Steps within `radius` of the current ones: those in progress, else the first not completed."""
        current = [i for i, s in enumerate(self.state.steps) if s is StepState.IN_PROGRESS]
        if not current:
            open_steps = [i for i, s in enumerate(self.state.steps) if s is StepState.NOT_STARTED]
            current = open_steps[:1] or [len(self.steps) - 1]
        centre = current[-1]
        return range(max(0, centre - radius), min(len(self.steps), centre + radius + 1))

    def _folded(self, left_out: range, where: str) -> str:
        if not left_out:
            return ""
        done = sum(self.state.steps[step] is StepState.COMPLETED for step in left_out)
        return f"\n... {len(left_out)} {where} steps not shown, {done} completed"
