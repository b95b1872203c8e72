"""A live session as lines of text: time, decision scores, the task's checklist, what was said."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from prospect.dialogue.timeline import decision_time
from prospect.protocol.messages import (
    FrameDecision,
    ResponseDone,
    ServerMessage,
    SessionRefreshed,
    StateMap,
    StateUpdated,
)

_MARKS = {"not_started": "[ ]", "in_progress": "[>]", "completed": "[x]"}
_BAR = 8


class TimelinePrinter:
    """Prints a frame once all its messages have arrived: those after a decision belong to its frame."""

    def __init__(self, console: Console, steps: Sequence[str], state: StateMap) -> None:
        self._console = console
        self._steps = steps
        self._state = dict(state)
        self._decision: FrameDecision | None = None
        self._notes: list[Text] = []

    def header(self) -> None:
        for number, step in enumerate(self._steps, 1):
            self._console.print(f"       S{number} {step}", highlight=False)
        self._console.print("   time  speak" + ("          update         state" if self._steps else ""), style="dim")

    def user(self, frame: int, text: str) -> None:
        """Add a user's text before `frame`."""
        self.flush()
        self._console.print(Text(f"{'':9}user: {text}", style="cyan"))

    def show(self, message: ServerMessage) -> None:
        if isinstance(message, FrameDecision):
            self.flush()
            self._decision = message
        elif isinstance(message, StateUpdated):
            self._state = dict(message.state)
            self._notes.append(Text(message.delta, style="yellow"))
        elif isinstance(message, ResponseDone):
            self._notes.append(Text(f"assistant: {message.text}", style="bold green"))
        elif isinstance(message, SessionRefreshed):
            self.flush()
            self._console.print(
                f"         context {message.tokens_before} -> {message.tokens_after} tokens", style="dim"
            )

    def flush(self) -> None:
        if self._decision is None:
            return
        decision, acted = self._decision, bool(self._notes)
        line = Text(style="" if acted else "dim")
        line.append(f"{decision_time(decision.frame):5.1f} s  ")
        line.append(f"{_bar(decision.p_speak)} {decision.p_speak:.2f}")
        if self._steps:  # without a recipe there is nothing to update
            line.append(f"  {_bar(decision.p_update)} {decision.p_update:.2f}  ")
            line.append("".join(_MARKS[state] for state in self._state.values()))
        self._console.print(line)
        for note in self._notes:
            self._console.print(Text(" " * 9).append(note))
        self._decision, self._notes = None, []


def _bar(probability: float) -> str:
    filled = round(probability * _BAR)
    return "#" * filled + "." * (_BAR - filled)
