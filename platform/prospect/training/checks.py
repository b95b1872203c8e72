"""Checks for combinations of settings that cannot work, and the `card=` setting in bytes."""

import re

from prospect.errors import ConfigError
from prospect.model.settings import LOSS_PARTS, ModelSettings
from prospect.training.settings import TrainingSettings

GIB = 2**30


def check_settings(model: ModelSettings, training: TrainingSettings) -> None:
    """Refuse combinations of settings that no training can run with.

    Raises:
        ConfigError: names both settings and what to change.
    """
    least, most = training.min_workers or 1, training.num_workers
    if least > most:
        _refuse(
            "training.min_workers",
            f"`training.min_workers` ({least}) must not exceed `training.num_workers` ({most})",
        )
    if training.max_steps is not None and training.warmup_steps >= training.max_steps:
        _refuse(
            "training.warmup_steps",
            f"`training.warmup_steps` ({training.warmup_steps}) must be below `training.max_steps` "
            f"({training.max_steps}): the learning rate would never reach its peak",
        )
    if model.adaptation == "qlora" and training.zero_stage == 3:
        _refuse(
            "training.zero_stage",
            "`training.zero_stage` (3) must not be combined with model.adaptation=qlora, whose 4-bit weights cannot be "
            "partitioned: choose "
            "training.zero_stage=2, or model.adaptation=lora",
        )
    if not any(getattr(training.losses, name) for name in LOSS_PARTS):
        _refuse("training.losses", "`training.losses` must have a weight above 0: raise one of them")


def _refuse(field: str, sentence: str) -> None:
    raise ConfigError(f"{sentence}.", field=field)


def card_bytes(card: str | float) -> int:
    """The bytes of `24GB`, `24GiB` or `24`; cards are sold by GB and have as many GiB.

    Raises:
        ConfigError: not a size.
    """
    text = str(card).strip().lower()
    size = re.fullmatch(r"(\d+(?:\.\d*)?)\s*(?:gi?b)?", text)
    if not size or not float(size[1]):
        raise ConfigError(f"`card` ({card}) must be a size, for example card=24GB or card=80GB.", field="card")
    return int(float(size[1]) * GIB)
