"""The configuration of a check."""

from typing import Self

from pydantic import model_validator

from prospect.config.schema import Config
from prospect.settings import Place


class CheckConfig(Config):
    """The sections that a source is read by; `model` is a place here, not a section."""

    model: Place | None = None  # type: ignore[assignment]
    """A base model: a folder, a name of the hub, or `package:NAME`. Compares its logits with those that transformers
    computes from the same weights, and looks at no data."""

    @model_validator(mode="after")
    def _together(self) -> Self:
        """Without the section `model` there is nothing to compare the others with."""
        return self
