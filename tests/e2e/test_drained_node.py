"""A node of a cluster is drained while sessions stream on it: they move to the other node."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from tests.e2e.sessions import NAMES, Pause, Server, is_up, same_but_for_farewells
from tests.serving.clients import until
from tests.serving.models import write_model
from tests.serving.postgres import PostgresServer, postgres  # noqa: F401  # a fixture

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(900)]

RAY = str(Path(sys.executable).with_name("ray"))
HEAD, *NODES = "127.0.0.2", "127.0.0.3", "127.0.0.4"
"""Ray takes 127.0.0.1 for a name of the machine's own address."""
DRAINED_WITHIN_S = 240


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that runs none of the application's processes, and two nodes that do."""
    ray.shutdown()  # what other tests share
    head = {"num_cpus": 0, "include_dashboard": False, "node_ip_address": HEAD}
    started = Cluster(initialize_head=True, head_node_args=head)
    try:
        for address in NODES:
            started.add_node(num_cpus=2, node_ip_address=address)
        ray.init(address=started.address, _node_ip_address=HEAD, log_to_driver=False, logging_level="ERROR")
        yield started
    finally:
        ray.shutdown()
        started.shutdown()


@pytest.fixture
def server(cluster: Cluster, tmp_path: Path, postgres: PostgresServer) -> Iterator[Server]:  # noqa: F811
    write_model(tmp_path / "model")
    server = Server(tmp_path, f"serving.store={postgres.new_database()}")
    yield server
    server.stop()


def drain(cluster: Cluster, address: str) -> None:
    """As a cloud does with a machine that it takes back; returns at once."""
    [node] = [each["NodeID"] for each in ray.nodes() if each["NodeManagerAddress"] == address]
    why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken back"]
    done = subprocess.run(
        [RAY, "drain-node", "--address", cluster.address, "--node-id", node, *why,
         "--deadline-remaining-seconds", str(DRAINED_WITHIN_S)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def node_of(address: str) -> str:
    """Of what listens there."""
    return address.partition(":")[0]


def test_sessions_leave_a_node_that_is_drained(cluster: Cluster, server: Server) -> None:
    undisturbed = server.stream()
    server.wait_until_whole()
    before: dict[str, tuple[str, str]] = {}
    victim: list[str] = []

    def move() -> None:
        rows = [server.row(session_id) for session_id in server.open_sessions()]
        before.update({row.session_id: (node_of(row.owner), node_of(row.engine)) for row in rows})
        victim.append(node_of(rows[0].engine))  # Ray may have put both engines there
        drain(cluster, victim[0])
        leaving = {each for row in rows for each in (row.owner, row.engine) if node_of(each) == victim[0]}
        until(lambda: not any(map(is_up, leaving)), DRAINED_WITHIN_S)

    spoken = server.stream(Pause(8, move, 2 * DRAINED_WITHIN_S), heard_by=NAMES)
    same_but_for_farewells(spoken, undisturbed)
    for heard in spoken.values():
        gateway, engine = before[heard.session_id]
        said = [message.type for message in heard.messages]
        assert ("session.going_away" in said) == (gateway == victim[0])
        assert bool(heard.moves) == (engine == victim[0])
        assert sum(moved.lost_frames for moved in heard.moves) == 0
