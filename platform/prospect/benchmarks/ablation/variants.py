"""Variants of suite=ablation: a reference, and configurations that differ from it in one factor."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from prospect.benchmarks.settings import Ablated, AblationSuite
from prospect.config.schema import Config
from prospect.data.sources import DataSettings
from prospect.hashing import fingerprint
from prospect.settings import Settings
from prospect.streaming.settings import StreamingSettings

S = TypeVar("S", bound=Settings)

Pass = Literal["own", "written"]
"""`own`: deltas and thresholds as the configuration has them. `written`: deltas generated as text, at the same
thresholds for all configurations."""

_REFERENCE = {
    "training.sampling.negative_rate": 0.1,
    "training.losses.decision": "balanced",
    "training.reading.share": 0.0,
}
"""The plain losses, which the project's defaults are compared with."""
_USUAL = StreamingSettings()
_WRITTEN_ONLY = {
    "training.sampling.watch_only_share": 0.0,
    "streaming.dst_decoder": "generate",
    "streaming.update_threshold": _USUAL.update_threshold,
}
"""Without a state head: deltas are text, and no clip is shown without its events, which teaches that head alone."""


@dataclass(frozen=True)
class Variant:
    """One configuration.

    Attributes:
        label: for tables.
        changes: dotted keys of the configuration.
    """

    label: str
    changes: Mapping[str, Any] = field(default_factory=dict)


VARIANTS: dict[Ablated, Variant] = {
    "reference": Variant("reference"),
    "token": Variant("token back-end", {"model.decision_backend": "token"}),
    "rho_1": Variant("rho 1", {"training.sampling.negative_rate": 1.0}),
    "rho_0_2": Variant("rho 0.2", {"training.sampling.negative_rate": 0.2}),
    "rho_0_01": Variant("rho 0.01", {"training.sampling.negative_rate": 0.01}),
    "focal": Variant("focal loss", {"training.losses.decision": "focal"}),
    "focal_rho_1": Variant(
        "focal loss, rho 1", {"training.losses.decision": "focal", "training.sampling.negative_rate": 1.0}
    ),
    "no_recipe": Variant("no recipe", {"context.recipe": False, **_WRITTEN_ONLY}),
    "no_state_head": Variant("no state head", {"training.losses.state": 0.0, **_WRITTEN_ONLY}),
    # A rank of an eighth of the width, as 128 is of a large model's: 128 would be all of the tiny one.
    "lora": Variant("LoRA", {"model.adaptation": "lora", "model.lora.r": 16, "model.lora.alpha": 32}),
}


@dataclass(frozen=True)
class AblationRun:
    """One training and its scoring; `config` is the usual jobs' configuration."""

    name: Ablated
    seed: int
    config: Config

    @property
    def variant(self) -> Variant:
        return VARIANTS[self.name]

    @property
    def result(self) -> Path:
        """File of the scores, written last."""
        return Path(self.config.storage.root) / "results" / f"{self.config.training.run_name}.json"

    @property
    def log(self) -> Path:
        """File of the process' output."""
        return Path(self.config.storage.root) / "logs" / f"{self.config.training.run_name}.log"

    @property
    def passes(self) -> dict[Pass, StreamingSettings]:
        """How the held-out videos are streamed."""
        own = self.config.streaming
        written = {"dst_decoder": "generate", "calibrated": False}
        thresholds = {name: getattr(_USUAL, name) for name in ("speak_threshold", "update_threshold")}
        return {"own": own, "written": own.model_copy(update={**written, **thresholds})}


def plan_runs(config: Config, suite: AblationSuite) -> list[AblationRun]:
    """All runs, seed by seed: an unfinished suite then compares all configurations on the first seeds."""
    shared = shared_config(config, suite)
    return [_plan_run(shared, name, seed) for seed in suite.seeds for name in suite.configurations]


def shared_config(config: Config, suite: AblationSuite) -> Config:
    """The reference on the suite's corpus, in a storage root of its own for each corpus and encoder.

    Models are registered under a separate name, so that they are never served.
    """
    data = fingerprint([suite.corpus.model_dump(mode="json"), config.vision.model_dump(mode="json")])
    root = f"{config.storage.root}/benchmarks/ablation/{data[:8]}"
    changes = {
        "storage.root": root,
        "data": DataSettings(source="dialogues", path=f"{root}/corpus").model_dump(),
        "corpus": suite.corpus.model_dump(),
        "model.name": f"{config.model.name}-ablation",
        "tracking.experiment": "ablation",
        "training.num_workers": 1,
        "training.threads_per_worker": 1,
        "training.max_steps": suite.max_steps,
        "training.eval_every": suite.max_steps,
        "training.save_every": max(1, suite.max_steps // 4),
        "training.stream_videos": 0,
        **_REFERENCE,
    }
    return changed(config, changes)


def _plan_run(shared: Config, name: Ablated, seed: int) -> AblationRun:
    seeds = {"training.seed": seed, "training.sampling.seed": seed, "training.clips.seed": seed}
    config = changed(shared, {**VARIANTS[name].changes, **seeds})
    same = {"model", "training", "context", "streaming", "evaluation"}
    key = fingerprint(config.model_dump(mode="json", include=same))
    return AblationRun(name, seed, changed(config, {"training.run_name": f"{name}-{seed}-{key[:8]}"}))


def changed(settings: S, changes: Mapping[str, Any]) -> S:
    """A validated copy of the settings with other values at dotted keys."""
    values = settings.model_dump()
    for key, value in changes.items():
        *path, last = key.split(".")
        section = values
        for part in path:
            section = section[part]
        assert last in section, key
        section[last] = value
    return type(settings).model_validate(values)
