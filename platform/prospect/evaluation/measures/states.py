"""Scores of the tracked state, after MultiWOZ's: joint goal accuracy, slot accuracy and slot F1.

A recipe that is empty or without times leaves every sum at zero, and so the metrics undefined: neither 0 nor 1.
"""

from collections.abc import Iterable, Mapping

from prospect.dialogue.state import StepState, TaskState
from prospect.dialogue.timeline import FPS
from prospect.evaluation.records import VideoDecisions
from prospect.evaluation.settings import EvaluationSettings
from prospect.evaluation.tally import Ratio, Sums, f1, ratio

AROUND_REFRESH = 10.0
"""Seconds before and after a refresh whose states are compared."""


def count_states(video: VideoDecisions, settings: EvaluationSettings) -> Sums:
    """Sums of one dialogue."""
    steps = video.timeline.num_steps if video.dialogue.has_dst_labels else 0
    frames = video.frames if steps else range(0)
    reference = video.timeline.states(settings.state_policy)
    tracked = {frame: decision.state for frame, decision in video.by_frame.items()}
    readouts = {f: decision.readout for f, decision in video.by_frame.items() if decision.readout is not None}

    def right(at: Iterable[int]) -> int:
        return sum(tracked.get(frame) == reference[frame] for frame in at)

    settled = _settled_frames(video, settings) if steps else []
    turns = [frame for frame in video.reference_utterances if steps]
    before, after = _around_refreshes(video, frames)
    return {
        "state_frames": len(frames),
        "state_right": right(frames),
        "state_events": len(settled),
        "state_events_right": right(settled),
        "state_turns": len(turns),
        "state_turns_right": right(turns),
        "readout_frames": len(frames) if readouts else 0,
        "readout_right": sum(readouts.get(frame) == reference[frame] for frame in frames),
        "before_refresh": len(before),
        "before_refresh_right": right(before),
        "after_refresh": len(after),
        "after_refresh_right": right(after),
        **_slot_sums(frames, steps, tracked, reference),
    }


def _settled_frames(video: VideoDecisions, settings: EvaluationSettings) -> list[int]:
    """For each change of the reference's state, the frame by which it must be known.

    It is the last one within the tolerance, or the last one before the next change.
    """
    changes = sorted({frame for frame, _ in video.reference_events(settings.state_policy)})
    slack = int(settings.event_tolerance * FPS)
    ends = [*(change - 1 for change in changes[1:]), video.frames.stop - 1]
    return [min(frame + slack, end) for frame, end in zip(changes, ends, strict=True)] if changes else []


def _around_refreshes(video: VideoDecisions, frames: range) -> tuple[list[int], list[int]]:
    span = int(AROUND_REFRESH * FPS)
    starts = [video.first_frame + refreshed.frame for refreshed in video.refreshes]
    before = {f for start in starts for f in range(max(start - span, frames.start), start) if f in frames}
    after = {f for start in starts for f in range(start, start + span) if f in frames}
    return sorted(before), sorted(after)


def _slot_sums(
    frames: range, steps: int, tracked: Mapping[int, TaskState], reference: Mapping[int, TaskState] | list[TaskState]
) -> Sums:
    """A missing state counts as the initial one."""
    sums = dict.fromkeys(("slots_right", "slots_hit", "slots_generated", "slots_reference", "progress_error"), 0.0)
    for frame in frames:
        want, state = reference[frame].steps, tracked.get(frame)
        have = state.steps if state is not None else None
        sums["slots_reference"] += sum(slot is not StepState.NOT_STARTED for slot in want)
        if have is None:
            sums["progress_error"] += _progress(want)
            continue
        equal = [a for a, b in zip(have, want, strict=False) if a == b]
        sums["slots_right"] += len(equal)
        sums["slots_hit"] += sum(slot is not StepState.NOT_STARTED for slot in equal)
        sums["slots_generated"] += sum(slot is not StepState.NOT_STARTED for slot in have)
        sums["progress_error"] += abs(_progress(have) - _progress(want))
    return {**sums, "slots": steps * len(frames)}


def _progress(steps: tuple[StepState, ...]) -> float:
    """The share of completed steps."""
    return sum(step is StepState.COMPLETED for step in steps) / len(steps) if steps else 0.0


METRICS: dict[str, Ratio] = {
    "joint_goal_accuracy": lambda t: ratio(t["state_right"], t["state_frames"]),
    "event_goal_accuracy": lambda t: ratio(t["state_events_right"], t["state_events"]),
    "turn_goal_accuracy": lambda t: ratio(t["state_turns_right"], t["state_turns"]),
    "slot_accuracy": lambda t: ratio(t["slots_right"], t["slots"]),
    "slot_f1": lambda t: f1(t["slots_hit"], t["slots_generated"], t["slots_reference"]),
    "readout_joint_goal_accuracy": lambda t: ratio(t["readout_right"], t["readout_frames"]),
    "progress_error": lambda t: ratio(t["progress_error"], t["state_frames"]),
    "goal_accuracy_before_refresh": lambda t: ratio(t["before_refresh_right"], t["before_refresh"]),
    "goal_accuracy_after_refresh": lambda t: ratio(t["after_refresh_right"], t["after_refresh"]),
}
"""Goal accuracy is the share of whole states that are right: `joint_` over all frames, `event_` once for each change of
the reference, when the tolerance has passed (or the next change comes), `turn_` at the reference's utterances, the unit
of text dialogues. Slot F1 counts steps that have started. `progress_error` is the mean difference in the share of
completed steps. Around a refresh, the 10 seconds before and after."""
