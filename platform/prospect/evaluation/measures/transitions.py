"""Scores of state updates: transitions of the same step and kind, near in time (`prospect.evaluation.events`)."""

from prospect.dialogue.state import StatePolicy
from prospect.dialogue.timeline import FPS
from prospect.evaluation.events import match_events
from prospect.evaluation.records import TimedEvent, VideoDecisions
from prospect.evaluation.settings import EvaluationSettings
from prospect.evaluation.tally import Ratio, Sums, precision_recall_f1, ratio


def count_transitions(video: VideoDecisions, settings: EvaluationSettings) -> Sums:
    """Sums of one dialogue."""
    generated, reference = video.events(), video.reference_events(settings.state_policy)
    tolerance = settings.event_tolerance * FPS
    pairs = match_events(generated, reference, tolerance)
    completed = match_events(_completions(generated), _completions(reference), tolerance)
    return {
        "events_generated": len(generated),
        "events_reference": len(reference),
        "events_matched": len(pairs),
        "latency": sum(decided - due for decided, due in pairs) / FPS,
        "completions_reference": len(_completions(reference)),
        "completions_matched": len(completed),
        "illegal_updates": _illegal(video, settings.state_policy),
    }


def _completions(events: list[TimedEvent]) -> list[TimedEvent]:
    return [(frame, transition) for frame, transition in events if transition.completes]


def _illegal(video: VideoDecisions, policy: StatePolicy) -> int:
    """Transitions of the system that its own state did not allow when they were decided."""
    state, illegal = video.timeline.state_before(video.first_frame), 0
    for _, decision in sorted(video.by_frame.items()):
        _, refused = state.apply(decision.delta, policy)
        illegal += len(refused)
        state = decision.state
    return illegal


METRICS: dict[str, Ratio] = {
    **precision_recall_f1("dst", "events_matched", "events_generated", "events_reference"),
    "dst_latency": lambda t: ratio(t["latency"], t["events_matched"]),
    "instruction_completion": lambda t: ratio(t["completions_matched"], t["completions_reference"]),
    "illegal_update_rate": lambda t: ratio(t["illegal_updates"], t["events_generated"]),
}
"""`instruction_completion` is the share of completed steps whose completion is decided within the tolerance (IC-Acc of
Qualcomm Interactive Cooking, arXiv 2511.21998, read off the state instead of the words)."""
