"""What a latency-aware run records: what was decided when, what a user knew at each frame, and how fast it went."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isnan
from typing import Any

from prospect.dialogue.schema import Dialogue
from prospect.dialogue.timeline import Timeline, decision_frame, decision_time
from prospect.evaluation.records import VideoDecisions, scored_frames
from prospect.evaluation.settings import PacedSettings
from prospect.percentiles import Percentiles
from prospect.streaming.types import Decision


@dataclass(frozen=True)
class TimedDecision:
    """A decision, and when things happened in seconds of the clock."""

    decision: Decision
    """Its `frame` counts the frames that the client sent, dropped ones included."""
    arrived: float
    """When the client sent the frame."""
    decided: float
    """When the whole decision was known, the utterance's last word included."""
    spoken: float | None
    """When the utterance's first token was known; None: nothing was said."""

    def frame_of(self, moment: float, speed: float) -> int:
        """The frame at which something counts that is known at `moment`: by then the video has gone on."""
        return decision_frame(decision_time(self.decision.frame) + (moment - self.arrived) * speed)


@dataclass(frozen=True)
class PacedDialogue:
    """One dialogue as a live session."""

    dialogue: Dialogue
    timeline: Timeline
    decisions: Sequence[TimedDecision]
    """In order; dropped frames have none."""
    dropped: Sequence[int] = ()
    """Frames that were dropped, among those that the client sent."""
    refused_texts: int = 0
    """User texts for which the context had no room, because frames before had been dropped."""

    def known(self, speed: float) -> VideoDecisions:
        """What a user of the session knew at each frame, for scoring.

        An utterance and its probability count at the frame during which its first token came, which is what a user sees
        begin (at most one a frame, as in a reference: `prospect.dialogue.timeline.place`). All else, the state and its
        transitions above all, counts at the frame during which the whole decision came. At a frame at which nothing new
        came, the state stands, and the probabilities are 0: the session was silent there. What comes before the next
        frame is due counts at its own frame, so that a model that is fast enough scores as without latency.
        """
        span = scored_frames(self.dialogue, self.timeline)
        decided: dict[int, list[Decision]] = defaultdict(list)
        said: dict[int, Decision] = {}
        for timed in self.decisions:
            decided[timed.frame_of(timed.decided, speed)].append(timed.decision)
            if timed.spoken is not None:
                said[max(timed.frame_of(timed.spoken, speed), max(said, default=-1) + 1)] = timed.decision
        standing = Decision(0, 0.0, 0.0, self.timeline.state_before(span.start))
        known = []
        for frame in range(max([len(span), *(1 + last for last in (*decided, *said))])):
            standing = _merge(replace(standing, frame=frame), decided[frame], said.get(frame))
            known.append(standing)
        return VideoDecisions(self.dialogue, self.timeline, known, span.start)

    def to_dict(self) -> dict[str, Any]:
        """Frames with their delays, for JSON: (frame, milliseconds to the decision, to the first token or null)."""
        frames = [
            (
                timed.decision.frame,
                round(1000 * (timed.decided - timed.arrived), 1),
                None if timed.spoken is None else round(1000 * (timed.spoken - timed.arrived), 1),
            )
            for timed in self.decisions
        ]
        named = {"video": self.dialogue.video_id, "dialogue": self.dialogue.dialogue_id}
        return {**named, "decided": frames, "dropped": list(self.dropped)}


def _merge(standing: Decision, fresh: Sequence[Decision], said: Decision | None) -> Decision:
    """What is known at a frame, of what stood before it, the decisions that came during it, and who began to speak."""
    latest = fresh[-1] if fresh else standing
    silent = [decision.p_speak for decision in fresh if decision.utterance is None]
    return replace(
        standing,
        p_speak=max(silent, default=0.0) if said is None else said.p_speak,
        p_update=max((decision.p_update for decision in fresh), default=0.0),
        state=latest.state,
        delta=tuple(transition for decision in fresh for transition in decision.delta),
        utterance=None if said is None else said.utterance,
        readout=latest.readout,
        fast=all(decision.fast for decision in fresh),
        silence=fresh[-1].silence if fresh else None,
    )


@dataclass(frozen=True)
class PaceReport:
    """How fast a latency-aware run went, as a result keeps it: without decisions, so that JSON holds all of it."""

    values: Mapping[str, Any]
    """What `PacedRun.to_dict` gives."""
    fast_share: float
    """Share of decided frames that took the fast path."""

    def metrics(self) -> dict[str, float]:
        """The measured times by stable name, for a tracker."""
        times = {
            f"{name}/{key}": value
            for name in ("step_ms", "latency_ms", "first_token_ms")
            for key, value in self.values[name].items()
            if value is not None
        }
        return {f"paced/{name}": value for name, value in times.items()} | {
            f"paced/{name}": self.values[name] for name in ("dropped_share", "busy")
        }

    def describe(self) -> str:
        """Machine and measured times in one line."""
        found = self.values
        step, latency, machine = found["step_ms"], found["latency_ms"], found["machine"]
        where = ", ".join(str(machine[name]) for name in ("device", "kind", "dtype") if name in machine)
        return (
            f"{where}: steps {_three(step)}, decisions {_three(latency)} ms behind their frames (p50/p95/p99 of "
            f"{step['number']:,} and {latency['number']:,}), {found['dropped']:,} of {found['frames']:,} frames "
            f"dropped, engine busy {found['busy']:.0%} of the time"
        )


@dataclass(frozen=True)
class PacedRun:
    """All dialogues of a run, and how fast it went."""

    dialogues: Sequence[PacedDialogue]
    settings: PacedSettings
    steps: Sequence[float]
    """Seconds of each step of the engine."""
    seconds: float
    """Of the clock, from the first session's start to the last one's end."""
    machine: Mapping[str, Any] = field(default_factory=dict)
    """What `describe_machine` says, with `kind` (`cpu` or `cuda`), `dtype` and `attention`."""

    def where(self) -> dict[str, Any]:
        """What the times depend on beside the load, whenever they are measured."""
        return {name: self.machine.get(name) for name in ("device", "cores", "threads", "kind", "dtype", "attention")}

    def known(self) -> list[VideoDecisions]:
        """What users knew at each frame, by dialogue."""
        return [dialogue.known(self.settings.speed) for dialogue in self.dialogues]

    @property
    def _decided(self) -> list[TimedDecision]:
        return [timed for dialogue in self.dialogues for timed in dialogue.decisions]

    @property
    def fast_share(self) -> float:
        """Share of decided frames that took the fast path; 1 without any."""
        fast = [timed.decision.fast for timed in self._decided]
        return sum(fast) / len(fast) if fast else 1.0

    def summary(self) -> dict[str, Any]:
        """Settings, machine and measured times for JSON: milliseconds as percentiles with their number.

        `latency_ms` is the time from a frame's arrival to its decision, `first_token_ms` to its utterance's first
        token, `busy` the share of the clock's time in which the engine worked.
        """
        decided, dropped = self._decided, sum(len(dialogue.dropped) for dialogue in self.dialogues)
        frames = len(decided) + dropped
        latencies = [timed.decided - timed.arrived for timed in decided]
        first_tokens = [timed.spoken - timed.arrived for timed in decided if timed.spoken is not None]
        return {
            **self.settings.model_dump(mode="json"),
            "machine": dict(self.machine),
            "step_ms": _percentiles(self.steps),
            "latency_ms": _percentiles(latencies),
            "first_token_ms": _percentiles(first_tokens),
            "frames": frames,
            "dropped": dropped,
            "dropped_share": dropped / frames if frames else 0.0,
            "refused_texts": sum(dialogue.refused_texts for dialogue in self.dialogues),
            "busy": sum(self.steps) / self.seconds if self.seconds else 0.0,
            "seconds": self.seconds,
        }

    def to_dict(self) -> dict[str, Any]:
        """`summary` and every dialogue's delays, for JSON."""
        return {**self.summary(), "dialogues": [dialogue.to_dict() for dialogue in self.dialogues]}

    def report(self) -> PaceReport:
        """What the evaluation's result keeps."""
        return PaceReport(self.to_dict(), self.fast_share)


def _percentiles(seconds: Sequence[float]) -> dict[str, float | None]:
    return {name: None if isnan(value) else value for name, value in Percentiles.of(seconds)._asdict().items()}


def _three(times: dict[str, float | None]) -> str:
    return "/".join("-" if (value := times[name]) is None else f"{value:.1f}" for name in ("p50", "p95", "p99"))
