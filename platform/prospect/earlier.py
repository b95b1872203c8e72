"""What earlier versions wrote, read as it was meant: defaults of later settings, and settings that are gone.

A run, a model or a store keeps the settings of its time. A setting that it does not name did not exist yet, and what
the program did then is its value.
"""

from collections.abc import Mapping
from typing import Any

EARLIER_DEFAULTS: Mapping[str, Any] = {
    "context.layout": 1,
    "model.projector": "mlp",
    "model.state_head": "steps",
    "training.clips.draws": 1,
    "training.losses.focal_alpha": None,
    "training.losses.lookup": 0.0,
    "training.reading.lookup": 1.0,
    "training.reading.share": 0.0,
    "training.reading.speaking_text": 3.0,
    "training.reading.watch_only_share": 0.1,
}
"""Dotted name of each setting that came later -> what the program did before."""

_NEVER_FITTED = "no weight for the NLI model was ever fitted; leave it out"
GONE: Mapping[str, str] = {
    "labels.aligner.nli_model": _NEVER_FITTED,
    "labels.aligner.nli_weight": _NEVER_FITTED,
    "training.text_share": "training.reading has replaced it; leave it out",
    "vision.device": "cluster.gpus says whether jobs compute on GPUs; leave it out",
}
"""Dotted name of each setting that was removed or renamed -> why, or the new name, and what to do."""


def read_saved(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` of a section as it was saved: with later settings that it does not name, without those gone since."""
    prefix = f"{section}."
    later = {name.removeprefix(prefix): value for name, value in EARLIER_DEFAULTS.items() if name.startswith(prefix)}
    return {**later, **{name: value for name, value in values.items() if f"{prefix}{name}" not in GONE}}
