"""Settings of the streaming engine: decision policy, scheduling, KV cache, attention."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from prospect.dialogue.state import StatePolicy
from prospect.settings import Settings

DstDecoder = Literal["generate", "readout"]
"""Where a delta comes from: generated as text, or read by the state head."""

AttentionName = Literal["auto", "sdpa", "flex", "varlen"]
"""`auto`: `sdpa` on a CPU; on a GPU the faster of `varlen` and `flex`, measured when the engine starts.

`varlen` is meant for GPUs. `flex` replaces it where the installed torch lacks it; CUDA graphs cannot capture it.
"""


OPERATIONAL = frozenset((
    "max_sessions", "history_events", "step_tokens", "chunk_tokens", "shared_tokens", "patience", "page_tokens",
    "pages", "memory_share", "parking", "parking_folder", "share_prefixes", "graph_rows", "max_waiting_frames",
))  # fmt: skip
"""Settings that say how an engine does its work, and not what it decides."""


class GenerationSettings(Settings):
    """How utterances and summaries are generated. Deltas are always the most probable ones."""

    decoding: Literal["greedy", "sampled"] = "greedy"
    """`greedy` takes the most probable token; `sampled` draws one."""
    temperature: float = Field(default=0.7, gt=0)
    """Temperature of `sampled`; below 1 favours probable tokens."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Nucleus of `sampled`: draw from the most probable tokens that together have this share of the probability."""
    seed: int = 0
    """Seed of the sessions' random numbers, together with each session's id."""


class StreamingSettings(Settings):
    """Settings of the streaming engine."""

    max_sessions: int = Field(default=64, ge=1)
    """Most open sessions; one more is answered `busy`."""
    speak_threshold: float = Field(default=0.5, ge=0, le=1)
    """Threshold of speaking if neither the session nor calibration gives one."""
    update_threshold: float = Field(default=0.5, ge=0, le=1)
    """Threshold of updating the state if neither the session nor calibration gives one."""
    calibrated: bool = True
    """Whether thresholds that training calibrated and saved with the model come before the two above."""
    cooldown_frames: int = Field(default=1, ge=0)
    """Frames after an utterance in which the assistant stays silent, unless the user says something."""
    speak_hysteresis: float | None = Field(default=0.1, ge=0, le=1)
    """Share below the threshold to which the probability must fall after an utterance before the next one, unless the
    user says something or the state moves: a model that wants to speak at every frame speaks once. None: it need not
    fall."""
    update_hysteresis: float | None = Field(default=None, ge=0, le=1)
    """The same for updates of the state."""
    dst_decoder: DstDecoder = "generate"
    """`generate` writes a delta as text; `readout` takes it from the state head without generating a token."""
    state_policy: StatePolicy = "strict"
    """Whether a step may complete without having started."""
    sampling: GenerationSettings = GenerationSettings()
    """How utterances are generated."""
    history_events: int = Field(default=4096, ge=0)
    """Frames with events that a session remembers; a session that has forgotten some makes no record."""
    step_tokens: int = Field(default=512, ge=2)
    """Most tokens of all sessions in one step; frames come first, then contexts, then generated text."""
    chunk_tokens: int = Field(default=256, ge=1)
    """Most tokens of one session in one step, so that a long context does not delay other sessions."""
    shared_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of all long texts and contexts in a step in which other sessions have something short to run, such
    as a frame; null: few on a CPU, where a token costs as much as a frame, and `chunk_tokens` on a GPU."""
    patience: int = Field(default=2, ge=1)
    """Steps of waiting that move a session up one kind of work; frames keep at least half a step."""
    catch_up_frames: int = Field(default=8, ge=1)
    """Most waiting frames of one session that are fed in one chunk."""
    page_tokens: int | None = Field(default=None, ge=1)
    """Tokens in a page of the KV cache; None: 256 on a GPU where `varlen` needs pages of that size, else 64."""
    pages: int | None = Field(default=None, ge=1)
    """Pages of the KV cache; None: as many as `max_sessions` full sessions need, within `memory_share`."""
    memory_share: float = Field(default=0.8, gt=0, le=1)
    """Share for the KV cache of the memory that is free when the engine starts."""
    parking: Literal["off", "memory", "disk"] = "off"
    """Where keys and values of idle sessions go when others need their pages. `off`: only as many sessions open as fit
    when all are full; `park` then moves a session to memory."""
    parking_folder: Path | None = None
    """Folder for `disk`. Each engine creates a subfolder here and deletes it on shutdown; subfolders of killed engines
    are removed when the next engine starts."""
    share_prefixes: bool = True
    """Whether contexts that begin with the same text share the pages of that text."""
    attention: AttentionName = "auto"
    """Attention backend."""
    graph_rows: tuple[int, ...] = (1, 4, 16, 64, 128)
    """Sizes in tokens of the captured CUDA graphs, used with `varlen` on a GPU; empty: no graphs."""
    deterministic: bool = False
    """Batch invariance: whether a session's results are the same bit for bit whatever runs beside it; much slower."""
    deterministic_rows: int = Field(default=16, ge=1)
    """Tokens of each forward pass with `deterministic`."""
    max_waiting_frames: int = Field(default=120, ge=1)
    """Most waiting frames of one session; one more is refused with `overloaded`."""

    @model_validator(mode="after")
    def _disk_has_a_folder(self) -> Self:
        if self.parking == "disk" and self.parking_folder is None:
            raise ValueError("parking_folder is missing; `parking=disk` needs one")
        return self

    def decisive(self) -> dict[str, Any]:
        """The settings on which decisions depend, for JSON."""
        return self.model_dump(mode="json", exclude=set(OPERATIONAL))

    def thresholds(self, calibrated: Mapping[str, Mapping[str, float]] | None, dataset: str) -> dict[str, float]:
        """Return the thresholds `speak` and `update`: calibrated for the data set, else in general, else configured."""
        known = (calibrated or {}) if self.calibrated else {}
        configured = {"speak": self.speak_threshold, "update": self.update_threshold}
        return {**configured, **known.get("default", {}), **known.get(dataset, {})}
