"""Settings of the served application and the limits of its sessions."""

from pydantic import Field

from prospect.settings import Place, Settings


class SessionLimits(Settings):
    """Limits of the served sessions; those of the engine are its own."""

    idle_timeout_s: float = Field(default=300.0, gt=0)
    """Seconds without a message from its client after which a session is closed."""
    max_unread_messages: int = Field(default=2000, ge=1)
    """Messages that wait for a client that does not read; with one more it is cut off."""


class ServingSettings(Settings):
    """The served application."""

    host: str = "127.0.0.1"
    """Address that the HTTP proxy listens on; 0.0.0.0 opens it to the network."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port of HTTP and WebSocket."""
    num_replicas: int = Field(default=1, ge=1)
    """Engines; each owns its sessions and their key-value caches."""
    num_gateways: int = Field(default=1, ge=1)
    """Processes that hold the clients' connections, without a model."""
    model: Place = "models:/prospect-dst@champion"
    """The served model: a folder, or `models:/NAME@ALIAS` of the registry."""
    limits: SessionLimits = SessionLimits()
