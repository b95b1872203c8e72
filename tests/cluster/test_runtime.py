"""Ray is joined where it is, and left in order wherever a job stops."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from ray._private import ray_constants, services

from prospect.cluster.runtime import keep_to_loopback, require_listener
from prospect.errors import ConfigError

JOB = """
import sys, threading, time
import ray
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from prospect.cluster.runtime import connect, disconnect

step, stopped = StreamingExecutor._scheduling_loop_step, threading.Event()

def late(executor, topology):
    goes_on = step(executor, topology)
    if stopped.is_set():
        time.sleep(3)  # a machine that has much to do; Ray Data's own shutdown waits for two seconds
        ray.wait([ray.put(0)])
    return goes_on

def shutdown(*args):
    print(sum(isinstance(thread, StreamingExecutor) for thread in threading.enumerate()), "executors at the shutdown")
    leave(*args)

def slow(row):
    time.sleep(0.05)
    yield row

def stop_amid_the_rows():
    rows = ray.data.from_items([{"row": row} for row in range(400)], override_num_blocks=400).flat_map(slow).iter_rows()
    for count, row in enumerate(rows):
        if count == 3:
            stopped.set()
            raise KeyboardInterrupt

StreamingExecutor._scheduling_loop_step = late
leave, ray.shutdown = ray.shutdown, shutdown
connect(num_cpus=1)
try:
    try:
        stop_amid_the_rows()
    finally:
        AT_THE_END
except KeyboardInterrupt:
    sys.exit(130)
"""


ENDS = ("disconnect()", "pass")


@pytest.fixture(scope="module")
def jobs() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """One job for each way to end; they run at once, since most of a job's time is waiting."""
    environment = {**os.environ, "RAY_BACKEND_LOG_LEVEL": "fatal"}
    started = {
        end: subprocess.Popen(
            [sys.executable, "-c", JOB.replace("AT_THE_END", end)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for end in ENDS
    }
    yield started
    for job in started.values():
        job.kill()
        job.wait()


@pytest.mark.e2e
@pytest.mark.parametrize("at_the_end", ENDS)
def test_an_interrupt_amid_rows_leaves_no_thread_that_uses_ray(
    at_the_end: str, jobs: dict[str, subprocess.Popen[str]]
) -> None:
    printed, _ = jobs[at_the_end].communicate(timeout=120)
    assert jobs[at_the_end].returncode == 130, printed
    lines = {line for line in printed.splitlines() if "Set ray log level" not in line}
    assert lines == {"0 executors at the shutdown"}


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "ray://[::1]:{}"])
def test_an_address_at_which_nothing_listens_is_named(address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(ConfigError, match=rf"`RAY_ADDRESS` \({address[:6]}.*{port}\) does not answer .*make up"):
        require_listener(address.format(port), "RAY_ADDRESS")


def test_addresses_with_a_listener_and_those_of_ray_pass() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        require_listener(f"127.0.0.1:{server.getsockname()[1]}", "RAY_ADDRESS")
    for address in ("", "auto", "local"):
        require_listener(address, "RAY_ADDRESS")


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], bool]:
    """Whether Ray would keep to loopback at an address."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def would(address: str | None) -> bool:
        with monkeypatch.context() as patch:
            patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
            patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "")  # so that it is put back
            patch.delenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
            keep_to_loopback(address)
            alone = not ray_constants.ENABLE_RAY_CLUSTER
            assert os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER") == ("0" if alone else None)
            return alone

    return would


def test_a_ray_that_is_started_here_keeps_to_loopback(loopback: Callable[[str | None], bool]) -> None:
    assert loopback("local")


def test_a_cluster_is_joined_as_it_was_started(loopback: Callable[[str | None], bool]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as alone:
        has_network = services.get_node_ip_address() != "127.0.0.1"
        assert loopback(f"127.0.0.1:{alone.getsockname()[1]}") is has_network
    with socket.create_server(("0.0.0.0", 0)) as to_all:
        assert not loopback(f"127.0.0.1:{to_all.getsockname()[1]}")
    assert not loopback("192.0.2.7:6379")
    assert not loopback("ray://head:10001")


def test_the_environment_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    keep_to_loopback("local")
    assert ray_constants.ENABLE_RAY_CLUSTER
