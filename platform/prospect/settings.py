"""The base of every configuration section. A module owns its section, and the section holds the defaults."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A validated, immutable group of settings; unknown keys are refused. Attribute docstrings document fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())
