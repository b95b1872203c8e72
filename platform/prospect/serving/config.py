"""The configuration of what hosts live sessions."""

from pydantic import Field

from prospect.config.schema import Config
from prospect.serving.settings import ServingSettings


class ServeConfig(Config):
    """The sections of the other jobs, and the served application's."""

    serving: ServingSettings = Field(default_factory=ServingSettings)
