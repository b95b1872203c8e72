"""Our routers on Serve's interface. Serve sends this module to each process by value: it keeps no state itself."""

import sys
from typing import Any

from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

from prospect.serving.directory import note_replicas


class PinnedRouter(ConsistentHashRouter):
    """Routes a request whose session id is a replica's id to that replica; others as its parent does.

    Serve tells a router at once of each replica that comes, dies or is on its way out.
    """

    def update_replicas(self, replicas: list[Any]) -> None:
        """Note the replicas for `ServeDirectory`."""
        super().update_replicas(replicas)
        note_replicas(str(self._deployment_id), (replica.replica_id.unique_id for replica in replicas))

    def _lookup_ranked_replicas(self, routing_key: str) -> list[Any]:
        pinned = [replica for replica in self._replicas if replica.unique_id == routing_key]
        return pinned or super()._lookup_ranked_replicas(routing_key)


class GatewayRouter(PowerOfTwoChoicesRequestRouter):
    """Serve's default router, which in a gateway notes the replicas for `until_leaving`.

    It runs in Serve's proxies too, which need not have this package.
    """

    def update_replicas(self, replicas: list[Any]) -> None:
        """Note the replicas where the directory is loaded."""
        super().update_replicas(replicas)
        if (directory := sys.modules.get("prospect.serving.directory")) is not None:
            directory.note_replicas(str(self._deployment_id), (each.replica_id.unique_id for each in replicas))
