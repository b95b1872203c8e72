"""What requests wait for: the decisions of their frames."""

import asyncio

from prospect.errors import ProspectError
from prospect.protocol.messages import FrameOutcome


class Outcomes:
    """Futures by seq; belongs to one event loop."""

    def __init__(self) -> None:
        self._awaited: dict[int, asyncio.Future[FrameOutcome]] = {}

    def of(self, seq: int) -> asyncio.Future[FrameOutcome]:
        """Return a future: done when the frame is decided, failed if it never is."""
        if seq not in self._awaited:
            self._awaited[seq] = asyncio.get_running_loop().create_future()
        return self._awaited[seq]

    def forget(self, seq: int) -> None:
        """Wait for a frame no more: it was not taken."""
        self._awaited.pop(seq, None)

    def decide(self, outcome: FrameOutcome) -> None:
        """Give whoever waits the outcome."""
        waiter = self._awaited.pop(outcome.seq, None)
        if waiter is not None and not waiter.done():  # the request may have been given up
            waiter.set_result(outcome)

    def fail(self, seq: int, error: ProspectError) -> None:
        """Tell whoever waits that the frame will not be decided."""
        waiter = self._awaited.pop(seq, None)
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)
            waiter.exception()  # nobody may be waiting any more

    def fail_all(self, error: ProspectError) -> None:
        """Tell everybody who waits."""
        for seq in list(self._awaited):
            self.fail(seq, error)
