"""Which replicas of a deployment take requests, and where they listen. Serve owns the replicas; this names them."""

import asyncio
import logging
from collections.abc import Collection, Iterable

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from prospect.messages import first_line

log = logging.getLogger(__name__)

WHERE_WITHIN_S = 5.0
"""Seconds within which a replica says where it listens, or is asked again."""
TOLD_WITHIN_S = 3.0
"""Seconds within which Serve tells a new process of a deployment's replicas."""
LOOKED_EVERY_S = 0.1

_present: dict[str, frozenset[str]] = {}
"""Ids of the replicas that take requests, by deployment, as Serve's controller tells this process."""


def note_replicas(deployment: str, replicas: Iterable[str]) -> None:
    """Note the replicas of a deployment that take requests now."""
    _present[deployment] = frozenset(replicas)


async def until_leaving(deployment: DeploymentHandle, replica: str) -> None:
    """Return once a replica that has taken requests takes no more: it is on its way out."""
    deployment = deployment.options()  # starts its router, and Serve tells that the replicas
    has_been_there = False
    while True:
        is_there = replica in _present.get(str(deployment.deployment_id), frozenset())
        if has_been_there and not is_there:
            return
        has_been_there |= is_there
        await asyncio.sleep(LOOKED_EVERY_S)


class ServeDirectory:
    """Where the replicas of a deployment listen, which have a method `where() -> (replica id, "host:port")`."""

    def __init__(self, deployment: DeploymentHandle) -> None:
        self._deployment = deployment
        self._known: dict[str, str] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._begun: asyncio.Task[None] | None = None

    async def addresses(self) -> Collection[str]:
        """Return the address of each replica that takes requests; later ones as soon as they have said it."""
        if self._begun is None:
            self._begun = asyncio.create_task(self._begin())
        await asyncio.shield(self._begun)
        self._ask_new()
        return list(self._known.values())

    async def _begin(self) -> None:
        """Learn of the replicas that are there: one that is missing in `addresses` counts as on its way out."""
        self._deployment = self._deployment.options()  # starts its router, and Serve tells that the replicas
        try:
            async with asyncio.timeout(TOLD_WITHIN_S):
                while True:
                    if self._present():
                        break
                    await asyncio.sleep(LOOKED_EVERY_S)
        except TimeoutError:
            return  # there is none
        self._ask_new()
        await asyncio.wait(self._asking.values())

    def _present(self) -> frozenset[str]:
        return _present.get(str(self._deployment.deployment_id), frozenset())

    def _ask_new(self) -> None:
        present = self._present()
        self._known = {replica: address for replica, address in self._known.items() if replica in present}
        for replica in present - set(self._known) - set(self._asking):
            task = self._asking[replica] = asyncio.create_task(self._ask(replica))
            task.add_done_callback(lambda _, replica=replica: self._asking.pop(replica, None))  # type: ignore[misc]

    async def _ask(self, replica: str) -> None:
        try:
            call = self._deployment.options(session_id=replica).where.remote()
            name, address = await asyncio.wait_for(call, WHERE_WITHIN_S)
            self._known[name] = address
        except (RayError, RayServeException, TimeoutError) as error:
            log.warning("replica %s does not say where it listens: %s", replica, first_line(error))
