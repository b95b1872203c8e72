"""The servers that are measured: the host without Ray in a process of its own, and the Ray Serve application."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import httpx
import psutil

from prospect.benchmarks.serve.processes import Roles, ray_processes
from prospect.errors import ProspectError
from prospect.serving.config import ServeConfig
from prospect.serving.settings import ServingSettings
from prospect.streaming.settings import StreamingSettings

REPOSITORY = Path(__file__).resolve().parents[4]
_READY_WITHIN_S = 120.0
_LOOKED_EVERY_S = 0.05
_ANSWERS_WITHIN_S = 60.0
"""A request that waits for the first engine is not to be given up: the others would not be answered sooner."""


class Server(Protocol):
    """Something that listens.

    Attributes:
        url: of HTTP, without a slash at its end.
    """

    url: str

    def roles(self) -> Roles:
        """Its processes by part."""


def stream_url(server: Server) -> str:
    """Where its WebSockets are opened."""
    return server.url.replace("http", "ws", 1) + "/v1/stream"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(url: str, alive: Any = lambda: True) -> float:
    """Seconds until `/readyz` says so.

    Raises:
        ProspectError: the server has ended, or is not ready in time.
    """
    began = time.perf_counter()
    while time.perf_counter() - began < _READY_WITHIN_S:
        try:
            if httpx.get(f"{url}/readyz", timeout=_ANSWERS_WITHIN_S, trust_env=False).status_code == 200:
                return time.perf_counter() - began
        except httpx.HTTPError:
            pass
        if not alive():
            break
        time.sleep(_LOOKED_EVERY_S)
    raise ProspectError(f"benchmark: {url} was not ready after {time.perf_counter() - began:.0f} s")


class HostServer:
    """Gateway, encoder and engine in one process; see `prospect.benchmarks.serve.host.run_host`."""

    def __init__(self, process: BaseProcess, url: str) -> None:
        self._process, self.url = process, url

    def roles(self) -> Roles:
        """One process."""
        return {"host": [psutil.Process(self._process.pid)]}


@contextmanager
def running_host(
    folder: Path, streaming: StreamingSettings, serving: ServingSettings, threads: int, core: int | None = None
) -> Iterator[HostServer]:
    """Run a host; arguments as of `run_host`."""
    from prospect.benchmarks.serve.host import run_host

    process = get_context("spawn").Process(target=run_host, args=(folder, streaming, serving, threads, core))
    process.start()
    try:
        url = f"http://{serving.host}:{serving.port}"
        wait_until_ready(url, process.is_alive)
        yield HostServer(process, url)
    finally:
        process.kill()
        process.join()


class ServeServer:
    """The Ray Serve application, on a Ray that this process has started.

    Attributes:
        launch_seconds: until `launch` returned and the application was ready, Ray's own start not included.
        direct: the same application at its gateways' own port, where it has one.
    """

    def __init__(self, url: str, launch_seconds: float, direct_url: str | None = None) -> None:
        self.url, self.launch_seconds = url, launch_seconds
        self.direct = self if direct_url is None else ServeServer(direct_url, launch_seconds)

    def roles(self) -> Roles:
        """Replicas, proxy, and Ray's other processes."""
        return ray_processes()


@contextmanager
def running_serve(config: ServeConfig) -> Iterator[ServeServer]:
    """Launch the application and shut it down; Ray stays."""
    from ray import serve

    from prospect.cluster.runtime import connect
    from prospect.serving.deployments import launch

    connect()
    began = time.perf_counter()
    url = launch(config, report=lambda _: None)
    try:
        wait_until_ready(url)
        seconds, port = time.perf_counter() - began, config.serving.direct_port
        yield ServeServer(url, seconds, None if port is None else f"http://{config.serving.host}:{port}")
    finally:
        serve.shutdown()


@contextmanager
def serve_run(overrides: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """`serve run` in a session of its own, as somebody types it; killed at the end if it still runs."""
    command = [str(Path(sys.executable).with_name("serve")), "run", "--address", "local", "serve.app:app"]
    process = subprocess.Popen(
        [*command, *overrides, f"serving.port={port}"],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    descendants: list[psutil.Process] = []
    try:
        yield process
        descendants = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    finally:
        if process.poll() is None:
            descendants = descendants or psutil.Process(process.pid).children(recursive=True)
            process.kill()
        for each in descendants:
            if each.is_running():
                each.kill()
        process.wait()


def kill(process: psutil.Process) -> None:
    """As the kernel kills what takes too much memory."""
    os.kill(process.pid, signal.SIGKILL)
