"""Errors of the endpoint: `LostRequest` may be repeated, `EndpointError` ends the run."""

from prospect.errors import ProspectError


class EndpointError(ProspectError):
    """The endpoint cannot be used; finished answers are kept, and the next run continues."""

    code = "endpoint"


class LostRequest(Exception):  # noqa: N818 - a fault of the endpoint
    """A request without an answer."""

    def __init__(
        self,
        reason: str,
        *,
        retry_after: float | None = None,
        again: bool = True,
        busy: bool = False,
        unreachable: bool = False,
    ) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        """Seconds to wait, as the endpoint asks."""
        self.again = again
        """Whether the same request may succeed later."""
        self.busy = busy
        """Whether the endpoint refused it for too many requests."""
        self.unreachable = unreachable
        """Whether no server listens at the address."""
