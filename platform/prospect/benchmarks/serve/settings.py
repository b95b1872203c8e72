"""Settings of suite=serve."""

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from prospect.benchmarks.engine.settings import EngineSuite
from prospect.serving.settings import Durability
from prospect.settings import Settings

Stage = Literal["ready", "paced", "unloaded", "saturation", "neighbour", "durability", "recovery", "soak"]
"""In the order in which they run; `soak` takes as long as it is told, and only where it is asked for."""
Kind = Literal["pictures", "embeddings"]
"""What clients send."""
System = Literal["engine", "host", "serve", "direct"]
"""The bare StreamingEngine, called in its own process; gateway, encoder and engine in one process behind uvicorn,
without Ray; the Ray Serve application behind Serve's proxy, and at its gateways' own port."""
Death = Literal["engine", "gateway", "engine and gateway", "engine, another stands by", "gateway, another stands by"]
"""What is killed."""

QUICK: dict[str, Any] = {
    "stages": ("paced", "saturation", "neighbour", "durability"),
    "systems": ("engine", "host"),
    "sessions": (2,),
    "embedding_sessions": (2,),
    "decisions": 8,
    "longest_s": 2.0,
    "unloaded_s": 2.0,
    "saturated_s": 1.0,
    "neighbours": 2,
    "durabilities": ("frames",),
    "durable_sessions": 2,
    "speak_rate": 0.25,
    "utterance_tokens": 3,
}
"""What a quick run has in place of the defaults: seconds, and no Ray."""


class StageLimits(Settings):
    """Seconds after which a stage is ended."""

    ready: float = Field(default=150, gt=0)
    """Start and end of `serve run`."""
    paced: float = Field(default=480, gt=0)
    """Sessions at 2 frames/s."""
    unloaded: float = Field(default=120, gt=0)
    """One session; raise it with `unloaded_s`."""
    saturation: float = Field(default=150, gt=0)
    """As many frames as are taken."""
    neighbour: float = Field(default=180, gt=0)
    """Sessions beside a client that sends the largest messages."""
    durability: float = Field(default=150, gt=0)
    """What the store costs."""
    recovery: float = Field(default=300, gt=0)
    """Deaths of processes."""
    soak: float = Field(default=4200, gt=0)
    """A crowd; raise it with `soak_s`."""


class ServeSuite(Settings):
    """Live sessions over WebSockets: what serving adds to the engine, and how long it takes to come back."""

    name: Literal["serve"] = "serve"
    """Chosen by suite=serve."""
    quick: bool = False
    """Run on a small scale and without Ray, to try the benchmark. Its numbers are marked, and say little."""
    stages: tuple[Stage, ...] = Field(default=get_args(Stage)[:-1], min_length=1)
    """Stages to run, in their own order."""
    limits: StageLimits = StageLimits()
    """Seconds that each stage may take."""
    results: Path | None = None
    """Folder of the raw JSON; default: `benchmarks` below the storage root."""
    commit: str | None = Field(default=None, min_length=7)
    """Commit of the tree, where git cannot tell."""
    systems: tuple[System, ...] = Field(default=get_args(System), min_length=1)
    """What is measured."""
    sessions: tuple[int, ...] = Field(default=(4, 16, 32, 64), min_length=1)
    """Numbers of sessions that send pictures at 2 frames/s; a single one is measured by stage `unloaded`."""
    embedding_sessions: tuple[int, ...] = (32,)
    """Numbers of sessions that send embeddings."""
    decisions: int = Field(default=1100, ge=1)
    """Decisions of a paced measurement: 1,000 of them silent, so that p99 can be printed."""
    few_decisions: int = Field(default=60, ge=1)
    """Of one that would take longer than `longest_s` for that many: 60 for p50, 220 for p95."""
    longest_s: float = Field(default=35.0, gt=0)
    """Seconds of a paced measurement."""
    unloaded_s: float = Field(default=30.0, gt=0)
    """Seconds of stage `unloaded`: 30 for p50, 112 for p95, 550 for p99."""
    saturated_s: float = Field(default=5.0, gt=0)
    """Seconds of a measurement in saturation."""
    saturated_sessions: int = Field(default=16, ge=1)
    """Sessions in saturation."""
    in_flight: tuple[int, ...] = (1, 8)
    """Frames of each session that are under way in saturation."""
    neighbours: int = Field(default=32, ge=1)
    """Sessions beside the client that sends the largest messages."""
    durabilities: tuple[Durability, ...] = get_args(Durability)
    """What the store keeps in each of them."""
    durable_sessions: int = Field(default=32, ge=1)
    """Sessions of each measurement of durability."""
    durable_rate: float = Field(default=0.25, gt=0, le=0.5)
    """Share of the frames at which the assistant speaks there: what it says is durable, silent decisions are not."""
    deaths: tuple[Death, ...] = get_args(Death)
    """What is killed, one after the other."""
    dying_sessions: int = Field(default=4, ge=1)
    """Sessions that stream while something is killed, at 4 frames/s."""
    soak_s: float = Field(default=3600.0, gt=0)
    """Seconds of stage `soak`."""
    soak_people: int = Field(default=8, ge=1)
    """Clients that stream there, one session after the other, on two engines and two gateways."""
    soak_frames_per_s: float = Field(default=2.0, gt=0)
    """Frames of each of their sessions."""
    soak_stays_s: tuple[float, float] = (5.0, 20.0)
    """Shortest and longest time for which somebody streams before the connection drops, or the session ends."""
    soak_kill_every_s: float = Field(default=240.0, gt=0)
    """Between two deaths there, of an engine and of a gateway in turns."""
    soak_sample_every_s: float = Field(default=10.0, gt=0)
    """Between two looks at memory, file handles, store and health."""
    speak_rate: float = Field(default=0.08, ge=0, le=0.5)
    """Share of the frames at which the assistant speaks; 8 % in the sample corpus."""
    utterance_tokens: int = Field(default=20, ge=1)
    """Tokens of every utterance."""
    steps: int = Field(default=6, ge=0)
    """Steps of every session's recipe, none of which ever moves."""
    compression: bool = True
    """Whether clients offer permessage-deflate, as browsers and our client do."""
    give_up_s: float = Field(default=10.0, gt=0)
    """Seconds for which the last frames of a measurement are waited for."""
    seed: int = 0
    """Of the frames and the moments of speech."""

    @model_validator(mode="before")
    @classmethod
    def _quickened(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("quick") in (True, "true", "True"):
            return {**QUICK, **values}
        return values

    def schedule(self, speak_rate: float | None = None) -> EngineSuite:
        """Rates and seed of the load, for the engine benchmark's parts."""
        return EngineSuite(
            seed=self.seed,
            speak_rate=self.speak_rate if speak_rate is None else speak_rate,
            utterance_tokens=self.utterance_tokens,
        )
