"""What must hold of a clip that was streamed through a deployment."""

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

from prospect.dialogue.state import StepState
from prospect.probe.stream import WRONG_STEP, Streamed
from prospect.protocol.messages import ErrorMessage, FrameDecision, FrameDropped, StateUpdated

_RANK = {state.label: state.value for state in StepState}


@dataclass(frozen=True)
class Check:
    """One of them: whether it holds, and what was found."""

    name: str
    ok: bool
    found: str


def check(streamed: Streamed, steps: int) -> list[Check]:
    """Check what came of a clip whose recipe has so many steps."""
    return [
        _answered(streamed),
        _in_order(streamed),
        _legal_states(streamed, steps),
        _numbered(streamed),
        _resumed(streamed),
        _refused(streamed),
        _erased(streamed),
    ]


def _answered(streamed: Streamed) -> Check:
    frames = set(range(streamed.num_frames))
    missing = sorted(frames - streamed.answered)
    twice = [seq for heard in (streamed.first, streamed.second) for seq, n in Counter(heard.answers).items() if n > 1]
    strange = sorted(streamed.answered - frames)
    problems = {"without an answer": missing, "answered twice": twice, "never sent": strange}
    found = [f"{what}: {_shown(seqs)}" for what, seqs in problems.items() if seqs]
    everything = (*streamed.first.messages, *streamed.second.messages)
    drops = len({m.seq for m in everything if isinstance(m, FrameDropped)})
    return Check(
        "every frame is answered once", not found, "; ".join(found) or f"{len(frames)} frames, {drops} dropped"
    )


def _in_order(streamed: Streamed) -> Check:
    for heard in (streamed.first, streamed.second):
        decided = [(m.seq, m.frame) for m in heard.messages if isinstance(m, FrameDecision)]
        for before, after in pairwise(decided):
            if not (before[0] < after[0] and before[1] < after[1]):
                found = f"frame {after[1]} (seq {after[0]}) came after frame {before[1]} (seq {before[0]})"
                return Check("decisions come in order", False, found)
    return Check("decisions come in order", True, f"{len(streamed.second.decisions)} on the second connection")


def _legal_states(streamed: Streamed, steps: int) -> Check:
    name = "states are legal"
    state = {f"S{number}": "not_started" for number in range(1, steps + 1)}
    updates = [m for _, m in sorted(streamed.second.events.items()) if isinstance(m, StateUpdated)]
    for update in updates:
        if (wrong := _wrong_update(dict(state), update)) is not None:
            return Check(name, False, f"event {update.event}: {wrong}")
        state = dict(update.state)
    return Check(name, True, f"{len(updates)} updates")


def _wrong_update(before: dict[str, str], update: StateUpdated) -> str | None:
    if list(update.state) != list(before):
        return f"has the steps {', '.join(update.state)}"
    changed = {step for step in before if update.state[step] != before[step]}
    named = {part.partition("->")[0].strip() for part in update.delta.split(";") if part.strip()}
    if changed != named:
        return f"says {update.delta!r} and changes {', '.join(sorted(changed)) or 'nothing'}"
    backwards = [step for step in sorted(changed) if _RANK[update.state[step]] < _RANK[before[step]]]
    return f"{backwards[0]} goes back from {before[backwards[0]]}" if backwards else None


def _numbered(streamed: Streamed) -> Check:
    name = "events are numbered without holes"
    for heard in (streamed.first, streamed.second):
        numbers = list(heard.events)
        if numbers != list(range(1, len(numbers) + 1)):
            return Check(name, False, f"heard {_shown(numbers)}")
    return Check(name, True, f"1 to {len(streamed.second.events)}")


def _resumed(streamed: Streamed) -> Check:
    """What was heard before the connection was cut comes again on the next one, the same."""
    name, first, second = "a new connection hears the same", streamed.first, streamed.second
    lost = [number for number in first.events if number not in second.events]
    lost += [seq for seq in first.decisions if seq not in second.decisions and seq > second.decided_to]
    other = [number for number, m in first.events.items() if second.events.get(number, m) != m]
    other += [seq for seq, m in first.decisions.items() if second.decisions.get(seq, m) != m]
    if lost or other:
        return Check(name, False, f"{len(lost)} messages did not come again, {len(other)} were others")
    return Check(name, True, f"{len(first.events)} events and {len(first.decisions)} decisions")


def _refused(streamed: Streamed) -> Check:
    errors = [m for m in streamed.second.messages if isinstance(m, ErrorMessage) and m.seq is None]
    named = [m for m in errors if WRONG_STEP in m.message or WRONG_STEP in (m.field or "")]
    found = named[0].message if named else f"{WRONG_STEP} was set, and no error came"
    others = [m for m in errors if m not in named]
    if others:
        found = f"{others[0].code}: {others[0].message}"
    return Check("a wrong message gets an error", bool(named) and not others, found)


def _erased(streamed: Streamed) -> Check:
    found = "the session is unknown" if streamed.forgotten else "the session is still known"
    return Check("DELETE erases the session", streamed.forgotten, found)


def _shown(numbers: list[int]) -> str:
    more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    return ", ".join(map(str, numbers[:5])) + more
