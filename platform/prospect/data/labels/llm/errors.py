"""Two kinds of misbehaviour: one that costs a request, and one that no request survives."""

from prospect.errors import ProspectError


class EndpointError(ProspectError):
    """The endpoint cannot be used at all; what is finished is kept, and the next run goes on from there."""

    code = "endpoint"


class BatchError(EndpointError):
    """A batch that failed, expired or was cancelled; the answers that it has are kept."""

    code = "batch"


class Lost(Exception):  # noqa: N818 - the request is lost, nothing of ours is wrong
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
        """Seconds that the endpoint asks to wait."""
        self.again = again
        """Whether the same request may succeed later."""
        self.busy = busy
        """Whether there were too many requests."""
        self.unreachable = unreachable
        """Whether nobody listens at the address."""
