"""Settings of the served application and the limits of its sessions."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from prospect.settings import Place, Settings
from prospect.streaming.waiting import WaitingSettings

HostName = Annotated[str, Field(pattern=r"^(\*|[A-Za-z0-9._-]+|[0-9A-Fa-f:]+)$")]
"""A name or an address, without scheme and port; `*`: any."""
Origin = Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.:\[\]_-]+$")]
"""Scheme, name and, if it is not the scheme's own, port."""
Durability = Literal["none", "events", "frames"]
"""What the store keeps of a session: nothing, what was said and the state, or its frames too."""


class SessionLimits(WaitingSettings):
    """Limits of the served sessions; those of the engine are its own."""

    idle_timeout_s: float = Field(default=300.0, gt=0)
    """Seconds without a message from its client after which a session is closed."""
    park_after_s: float = Field(default=30.0, gt=0)
    """Seconds without a message after which the session's keys and values leave the KV cache, where `streaming.parking`
    says where to; its next frame brings them back."""
    max_unread_messages: int = Field(default=2000, ge=1)
    """Messages that wait for a client that does not read; with one more it is cut off."""


class AutoscalingSettings(Settings):
    """Engines that come and go with the sessions; off where `max_engines` is null."""

    min_engines: int = Field(default=1, ge=1)
    """Fewest engines."""
    max_engines: int | None = Field(default=None, ge=1)
    """Most engines; null: `serving.num_replicas` of them, whatever they have to do."""
    target_sessions: int = Field(default=16, ge=1)
    """Sessions with which an engine is full: where all are, another one is started."""
    max_step_s: float = Field(default=0.25, gt=0)
    """Mean seconds of an engine's steps with which it is full too, however few its sessions."""
    upscale_delay_s: float = Field(default=5.0, ge=0)
    """Seconds for which more engines must be needed before one is started."""
    downscale_delay_s: float = Field(default=300.0, ge=0)
    """Seconds for which fewer engines must suffice before one is stopped; its sessions move."""


class KeySettings(Settings):
    """API keys, and what each of them may use; null: as much as there is."""

    required: bool | None = None
    """Whether clients need a key of `prospect keys add NAME`; null: unless the server listens on loopback alone. Only
    there may it be false."""
    max_sessions: int | None = Field(default=32, ge=1)
    """Sessions that a key may have open at once, at all gateways together."""
    max_messages_per_s: float | None = Field(default=200.0, gt=0)
    """Requests, frames and other messages that a gateway takes of a key, a second; after a pause ten seconds' worth."""
    max_bytes_per_s: float | None = Field(default=32e6, gt=0)
    """Bytes of them, likewise."""


class ServingSettings(Settings):
    """The served application."""

    host: str = "127.0.0.1"
    """Address that the HTTP proxy listens on; 0.0.0.0 opens it to the network."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port of HTTP and WebSocket."""
    direct_port: int | None = Field(default=None, ge=1, le=65535)
    """Another port, on which gateways answer the same without Serve's proxy between: less CPU and latency a frame. On
    the nodes that have a gateway; null: none."""
    keys: KeySettings = KeySettings()
    allowed_hosts: tuple[HostName, ...] = ()
    """Names by which the server may be called, beside those of loopback and `host`; behind a proxy the public one."""
    allowed_origins: tuple[Origin, ...] = ()
    """Web pages of other servers that may use this one, such as https://example.com."""
    num_replicas: int = Field(default=1, ge=1)
    """Engines; each holds its sessions' key-value caches. With `autoscaling`, those at the start."""
    autoscaling: AutoscalingSettings = AutoscalingSettings()
    num_gateways: int = Field(default=1, ge=1)
    """Processes that hold the clients' connections, without a model."""
    num_encoders: int = Field(default=1, ge=0)
    """Processes that encode pictures; 0: clients send embeddings."""
    gpus_per_encoder: float = Field(default=0.2, gt=0, le=1)
    """Share of a GPU that an encoder takes, of the one that its engine has; 1: a GPU of its own."""
    model: Place = "models:/prospect-dst@champion"
    """The served model: a folder, or `models:/NAME@ALIAS` of the registry."""
    durability: Durability = "events"
    """What survives the death of both processes that hold a session: `none` of it, `events` and the state, or the
    `frames` too. The death of its engine alone loses nothing in any case."""
    store: str | None = Field(default=None, repr=False)
    """Database of the sessions, `sqlite:////PATH` or `postgresql://USER@HOST/NAME`; null: an SQLite file under
    `storage.root`, which suffices on one node."""
    move_seconds: float = Field(default=60.0, gt=0)
    """Seconds within which a session whose engine is gone must find another one; its frames are kept as long."""
    retention_hours: float = Field(default=24.0, gt=0)
    """Hours for which the store keeps a session after its end."""
    limits: SessionLimits = SessionLimits()

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.direct_port == self.port:
            raise ValueError(f"direct_port ({self.port}) must differ from port, where Serve's proxy listens")
        return self
