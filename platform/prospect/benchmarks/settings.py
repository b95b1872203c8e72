"""What each suite of jobs/benchmark.py can be told. Light, because every job's configuration imports it."""

from typing import Annotated, Literal

from pydantic import Field

from prospect.settings import Settings


class EmbedSuite(Settings):
    """The embedding pipeline against the bare encoder, the bare decoder and the peers' ways."""

    name: Literal["embed"] = "embed"


class LabelsSuite(Settings):
    """The aligner against gold steps and against simpler methods."""

    name: Literal["labels"] = "labels"


Suite = Annotated[EmbedSuite | LabelsSuite, Field(discriminator="name")]
