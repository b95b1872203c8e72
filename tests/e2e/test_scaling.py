"""Engines come with the sessions and go with them, on a real Ray Serve."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import ray
from ray import serve
from ray.serve.schema import ReplicaState

from prospect.client import LiveSession, ProspectClient
from prospect.config.load import load
from prospect.serving.config import ServeConfig
from prospect.serving.deployments import launch
from scripts.cluster import free_port
from tests.serving.models import NEVER, STEPS, picture, write_model

pytestmark = pytest.mark.e2e

WITHIN_S = 90


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProspectClient]:
    """Of a server with one to two engines of one session, on a Ray that thinks it has eight CPUs."""
    folder, port = tmp_path_factory.mktemp("scaled"), free_port()
    ray.shutdown()
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    settings = [
        f"storage.root={folder}",
        f"serving.model={write_model(folder / 'model')}",
        f"serving.port={port}",
        "serving.autoscaling.max_engines=2",
        "serving.autoscaling.target_sessions=1",
        "serving.autoscaling.upscale_delay_s=0",
        "serving.autoscaling.downscale_delay_s=3",
        "serving.autoscaling.max_step_s=60",
    ]
    try:
        launch(load("serve", settings, ServeConfig))
        with ProspectClient(f"http://127.0.0.1:{port}") as client:
            yield client
    finally:
        serve.shutdown()
        ray.shutdown()


def num_engines() -> int:
    """Those that run; 0 while one starts or stops."""
    states = serve.status().applications["prospect"].deployments["Engine"].replica_states
    return states.get(ReplicaState.RUNNING, 0) if set(states) == {ReplicaState.RUNNING} else 0


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


class Stream:
    """Streams pictures until it is stopped; then each frame has been decided once."""

    def __init__(self, live: LiveSession) -> None:
        self._live, self._off = live, threading.Event()
        self.num_sent = 0
        self._decided: list[int] = []
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._hear)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        while not self._off.wait(0.25):
            self._live.push(picture(self.num_sent % 5))
            self.num_sent += 1
        self._live.close()

    def _hear(self) -> None:
        self._decided.extend(message.seq for message in self._live if message.type == "decision")

    def stop(self) -> list[int]:
        """Close the session; returns the seqs of the decided frames."""
        self._off.set()
        for thread in self._threads:
            thread.join(WITHIN_S)
            assert not thread.is_alive()
        return self._decided


@pytest.mark.long
def test_engines_follow_the_sessions_and_none_of_these_is_lost(client: ProspectClient) -> None:
    assert num_engines() == 1
    streams = [Stream(client.live("Make tea", STEPS, thresholds=NEVER)) for _ in range(2)]
    until(lambda: num_engines() == 2)
    streams.append(Stream(client.live("Make tea", STEPS, thresholds=NEVER)))  # on the second engine
    time.sleep(1)
    for stream in streams[1:]:
        assert stream.stop() == list(range(stream.num_sent))
    until(lambda: num_engines() == 1)
    time.sleep(1)
    assert streams[0].stop() == list(range(streams[0].num_sent)), "it went on, or moved to the engine that stayed"
