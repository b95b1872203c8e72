"""Decides whether a request is answered, and whose it is."""

from starlette.datastructures import Headers

from prospect.errors import SessionError, session_error
from prospect.serving.access.caller import Caller
from prospect.serving.access.keyring import Keyring, no_key
from prospect.serving.access.keys import KEY_SUBPROTOCOL
from prospect.serving.access.limits import KeyLimits
from prospect.serving.access.origins import OriginRules
from prospect.serving.settings import ServingSettings

OPEN_PATHS = {"/healthz", "/readyz", "/"}
"""Answered without a key: a supervisor and a load balancer have none, the page asks for one, and nothing of a session
is told there."""
PAGE_FILES = "/web/"
"""Begin of the paths of the page's files, likewise."""


class Access:
    """What one gateway lets in; belongs to one event loop.

    Args:
        settings: of the application.
        keyring: the keys; None: keys are off.
        bound: address that the server listens on; None: loopback.
    """

    def __init__(
        self, settings: ServingSettings | None = None, keyring: Keyring | None = None, bound: str | None = None
    ) -> None:
        settings = settings or ServingSettings()
        self._settings, self._keyring = settings.keys, keyring
        self.origins = settings.allowed_origins
        self._rules = OriginRules(bound, settings.allowed_hosts, settings.allowed_origins)
        self._limits: dict[str, KeyLimits] = {}

    @property
    def needs_key(self) -> bool:
        return self._keyring is not None

    def check_origin(self, headers: Headers) -> None:
        """Refuse what a web page of another server sends, and what is meant for a server of another name.

        Raises:
            SessionError: `forbidden`.
        """
        host, origin = ", ".join(headers.getlist("host")), ", ".join(headers.getlist("origin"))
        if not self._rules.allows_host(host):
            message = f"host: {host[:100]!r} is not a name of this server; list it in serving.allowed_hosts"
            raise session_error("forbidden", message, "host")
        if not self._rules.allows_origin(origin if "origin" in headers else None, host):
            message = f"origin: {origin[:100]!r} may not use this server; list it in serving.allowed_origins"
            raise session_error("forbidden", message, "origin")

    async def caller(self, path: str, headers: Headers) -> Caller:
        """Who sent a request.

        Raises:
            SessionError: `unauthorized`; `unavailable`: the keys cannot be read.
        """
        if self._keyring is None or path in OPEN_PATHS or path.startswith(PAGE_FILES):
            return Caller()
        key = _key_in(headers)
        if key is None:
            raise no_key()
        key_id = await self._keyring.id_of(key)
        if key_id not in self._limits:
            self._limits[key_id] = KeyLimits(self._settings)
        return Caller(key_id, self._limits[key_id])

    async def is_good(self, caller: Caller) -> bool:
        """Whether a caller's key has not been revoked since."""
        return self._keyring is None or caller.key_id is None or await self._keyring.has(caller.key_id)


def rate_limited(wait: float) -> SessionError:
    """Make the error for a key that sends too much, and may send again in `wait` seconds."""
    message = f"authorization: this API key sends more than it may; try again in {max(wait, 1):.0f} s"
    error = session_error("rate_limited", message, "authorization")
    error.retry_after = wait
    return error


def _key_in(headers: Headers) -> str | None:
    """The key of a request: in its header, or among the subprotocols of a browser's WebSocket."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    return next((each[len(KEY_SUBPROTOCOL) :] for each in offered(headers) if each.startswith(KEY_SUBPROTOCOL)), None)


def offered(headers: Headers) -> list[str]:
    """The subprotocols that a WebSocket client offers."""
    return [each.strip() for line in headers.getlist("sec-websocket-protocol") for each in line.split(",")]
