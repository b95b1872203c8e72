"""Limits and decisions of the engine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from prospect.dialogue.state import StatePolicy
from prospect.settings import Settings

DstDecoder = Literal["generate", "readout"]
"""Where a delta comes from once the model decides to update: written as text, or read off the state head."""

AttentionName = Literal["auto", "sdpa", "flex", "varlen"]
"""`auto`: `sdpa` on a CPU, on a GPU the faster one of `varlen` and `flex`, measured when the engine starts."""


class SamplingSettings(Settings):
    """How utterances and summaries are generated. Deltas are always the most probable ones."""

    decoding: Literal["greedy", "sampled"] = "greedy"
    """`greedy` takes the most probable token; `sampled` draws one."""
    temperature: float = Field(default=0.7, gt=0)
    """Of `sampled`: below 1 makes probable tokens more so."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Of `sampled`: draws from the most probable tokens that have this share of the probability together."""
    seed: int = 0
    """With a session's id it makes the session's random numbers."""


class StreamingSettings(Settings):
    """Limits and decisions of the engine."""

    max_sessions: int = Field(default=64, ge=1)
    """Sessions that may be open at once; one more is answered `busy`."""
    speak_threshold: float = Field(default=0.5, ge=0, le=1)
    """Used where neither the session nor the model brings a calibrated one."""
    update_threshold: float = Field(default=0.5, ge=0, le=1)
    """Threshold of updating the state if neither the session nor calibration gives one."""
    calibrated: bool = True
    """Whether thresholds that were calibrated in training and travel with the model come before the two above."""
    cooldown_frames: int = Field(default=1, ge=0)
    """Frames after an utterance in which the assistant stays silent, unless the user says something."""
    speak_hysteresis: float | None = Field(default=0.1, ge=0, le=1)
    """After an utterance the probability must first fall this share below the threshold before the next one, unless
    the user says something or the state moves: a model that wants to speak at every frame speaks once. None: it need
    not fall."""
    update_hysteresis: float | None = Field(default=None, ge=0, le=1)
    """The same for updates of the state."""
    dst_decoder: DstDecoder = "generate"
    """`generate` writes a delta as text; `readout` takes it from the state head without generating a token."""
    state_policy: StatePolicy = "strict"
    """Whether a step may complete without having started."""
    sampling: SamplingSettings = SamplingSettings()
    """How utterances are generated."""
    history_events: int = Field(default=4096, ge=0)
    """Frames with events that a session remembers; one that has forgotten some makes no record."""
    step_tokens: int = Field(default=512, ge=2)
    """Most tokens of all sessions in one step; frames come first, then contexts, then generated text."""
    chunk_tokens: int = Field(default=256, ge=1)
    """Most tokens of one session in one step, so that a long context does not hold up the others."""
    patience: int = Field(default=2, ge=1)
    """Steps that a session waits until it counts as much as the next more urgent kind of work; half a step at least
    stays with frames."""
    catch_up_frames: int = Field(default=8, ge=1)
    """Most waiting frames of one session that are decided in one chunk."""
    page_tokens: int = Field(default=64, ge=1)
    """Tokens a page of the cache holds."""
    pages: int | None = Field(default=None, ge=1)
    """Pages of the cache; None: what `max_sessions` full sessions need, as far as `memory_share` has room."""
    memory_share: float = Field(default=0.8, gt=0, le=1)
    """Of the memory that is free when the engine is made."""
    parking: Literal["off", "memory", "disk"] = "off"
    """Where the keys and values of idle sessions go when others need their pages. `off`: no more sessions are opened
    than full ones fit; a session that is parked by hand goes to memory then."""
    parking_folder: Path | None = None
    """For `disk`. Each engine creates a subfolder here and deletes it on shutdown; subfolders of killed engines are
    removed when the next engine starts."""
    share_prefixes: bool = True
    """Whether contexts that begin with the same text have those keys and values once."""
    attention: AttentionName = "auto"
    """Attention backend."""
    graph_rows: tuple[int, ...] = (1, 4, 16, 64, 128)
    """Numbers of tokens up to which a step runs as one captured CUDA graph, with `varlen` on a GPU; none: no graphs."""
    deterministic: bool = False
    """Whether a session's results are the same bit for bit whatever runs beside it; much slower."""
    deterministic_rows: int = Field(default=16, ge=1)
    """Tokens a forward pass has then."""
    max_waiting_frames: int = Field(default=120, ge=1)
    """Frames of one session that may wait; one more is refused with `overloaded`."""

    @model_validator(mode="after")
    def _disk_has_a_folder(self) -> Self:
        if self.parking == "disk" and self.parking_folder is None:
            raise ValueError("parking is disk; say where with parking_folder")
        return self

    def thresholds(self, calibrated: Mapping[str, Mapping[str, float]] | None, dataset: str) -> dict[str, float]:
        """`speak` and `update`: those calibrated for the data set, else by default, else the configured ones."""
        known = (calibrated or {}) if self.calibrated else {}
        configured = {"speak": self.speak_threshold, "update": self.update_threshold}
        return {**configured, **known.get("default", {}), **known.get(dataset, {})}
