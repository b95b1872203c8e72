"""The local cluster: `ray start --head` and an MLflow server, started from the repository's root and ended again.

`make up` and `make down` run it. Whatever it starts carries one mark in its environment; `down` ends the marked
processes and the descendants of the two that were started, and nothing else.
"""

import argparse
import contextlib
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

from prospect.tracking.settings import database_uri

REPOSITORY = Path(__file__).resolve().parents[1]
MARK = "PROSPECT_CLUSTER"
ALONE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's variable, on every system: 0 has all that Ray starts listen on loopback alone, and no other node can join."""
START_S = 180
"""How long the servers may take to answer, seconds."""
END_S = 45
"""How long they may take to end; Ray drains for up to 30 seconds."""


class ClusterError(Exception):
    """One sentence that says why nothing was done, and what to do."""


def main() -> int:
    """Exit status 0, or 2 after one line on stderr."""
    parser = argparse.ArgumentParser(description="Start (up) or end (down) the local cluster.")
    parser.add_argument("action", choices=["up", "down"])
    parser.add_argument("--ray-port", type=int, default=6379)
    parser.add_argument("--dashboard-port", type=int, default=8265)
    parser.add_argument("--mlflow-port", type=int, default=5000)
    parser.add_argument("--storage", type=Path, default=REPOSITORY / "outputs", help="storage.root of the jobs")
    parser.add_argument("--run-dir", type=Path, default=REPOSITORY / ".run", help="pid file and logs")
    parser.add_argument("--temp-dir", type=Path, help="Ray's session folder; default: Ray's own")
    options = parser.parse_args()
    try:
        return up(options) if options.action == "up" else down(options.run_dir)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        down(options.run_dir)
        return 130


def up(options: argparse.Namespace) -> int:
    """Starts both servers and returns when they answer."""
    record = options.run_dir / "cluster.json"
    refuse_a_second(record)
    ports = {"RAY_PORT": options.ray_port, "DASHBOARD_PORT": options.dashboard_port, "MLFLOW_PORT": options.mlflow_port}
    for name, port in ports.items():
        if listens(port):
            raise ClusterError(
                f"something already listens on port {port}: end it, or choose another, as {name}={port + 1}"
            )
    storage = options.storage.resolve()
    for folder in (storage, options.run_dir):
        folder.mkdir(parents=True, exist_ok=True)
    mark = secrets.token_hex(8)
    environment = cluster_environment(mark, storage, options.mlflow_port)
    if environment["RAY_AUTH_MODE"] == "token":
        subprocess.run([*ray(), "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
    commands = {"head": head_command(options), "mlflow": mlflow_command(storage, options.mlflow_port)}
    started = {"mark": mark, "pids": {}}
    for name, command in commands.items():
        with (options.run_dir / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        started["pids"][name] = process.pid
        record.write_text(json.dumps(started))
    urls = {
        "head": f"http://127.0.0.1:{options.dashboard_port}/api/version",
        "mlflow": f"http://127.0.0.1:{options.mlflow_port}/health",
    }
    for name, url in urls.items():
        wait_for(name, started["pids"][name], url, options.run_dir)
    print(guide(options, environment))
    return 0


def refuse_a_second(record: Path) -> None:
    if not record.exists():
        return
    alive = processes(json.loads(record.read_text()))
    if alive:
        raise ClusterError(
            f"`make up` has started a cluster here already (process {alive[0].pid}): `make down` ends it"
        )
    record.unlink()


def cluster_environment(mark: str, storage: Path, mlflow_port: int) -> dict[str, str]:
    """What the head, its workers and every submitted job inherit."""
    return {
        **os.environ,
        MARK: mark,
        # A job's `python` is the first on the PATH of the head, not of whoever submits.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        ALONE: os.environ.get(ALONE, "0"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{mlflow_port}",
        "PROSPECT_STORAGE_ROOT": str(storage),
    }


def ray() -> list[str]:
    return [sys.executable, "-m", "ray.scripts.scripts"]


def head_command(options: argparse.Namespace) -> list[str]:
    """Ports that nobody types are free ones, so that two clusters can stand side by side."""
    command = [
        *ray(), "start", "--head", "--block", f"--port={options.ray_port}",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={options.dashboard_port}",
        f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}",
    ]  # fmt: skip
    return [*command, f"--temp-dir={options.temp_dir}"] if options.temp_dir else command


def mlflow_command(storage: Path, port: int) -> list[str]:
    """One worker: jobs log a few times a second, and each further worker takes 250 MB."""
    return [
        sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1",
        f"--backend-store-uri={database_uri(storage)}",
        f"--artifacts-destination={(storage / 'mlartifacts').absolute().as_uri()}",
    ]  # fmt: skip


def wait_for(name: str, pid: int, url: str, run_dir: Path) -> None:
    """Returns when `url` answers; ends everything and refuses when the process has ended or is too slow."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie":
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.HTTPError:  # it asks for the token: it is there
            return
        except OSError:
            time.sleep(0.5)
    down(run_dir)
    raise ClusterError(f"{name} did not start; its output is in {run_dir / name}.log")


def guide(options: argparse.Namespace, environment: dict[str, str]) -> str:
    """What to type in the shell that uses the cluster."""
    exports = {name: environment[name] for name in ("RAY_AUTH_MODE", ALONE, "MLFLOW_TRACKING_URI")}
    if options.dashboard_port != 8265 or options.temp_dir:
        exports["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{options.dashboard_port}"
    if options.temp_dir or options.ray_port != 6379:
        exports["RAY_ADDRESS"] = f"127.0.0.1:{options.ray_port}"
    return "\n".join([
        f"Ray listens on http://127.0.0.1:{options.dashboard_port}, MLflow on {environment['MLFLOW_TRACKING_URI']};",
        f"outputs go to {environment['PROSPECT_STORAGE_ROOT']}. In the shell that uses them:",
        "",
        f"    source {Path(sys.prefix)}/bin/activate",
        *(f"    export {name}={value}" for name, value in exports.items()),
        "    ray job submit -- python jobs/train.py",
        "",
        "`make down` ends both.",
    ])  # fmt: skip


def down(run_dir: Path) -> int:
    """Asks what `up` started to end, and ends what is left after `END_S`."""
    record = run_dir / "cluster.json"
    if not record.exists():
        print("Nothing to end: `make up` has not started a cluster here.")
        return 0
    started = json.loads(record.read_text())
    ours = processes(started)
    # Ray waits half a minute for actors that Ray Data leaves behind; without them the head ends at once.
    for process in ours:
        if process.pid in started["pids"].values() or is_worker(process):
            signal_if_alive(process, signal.SIGTERM)
    _, left = psutil.wait_procs(ours, timeout=END_S)
    left = {*left, *processes(started)}  # what a dying parent has started meanwhile
    for process in left:
        signal_if_alive(process, signal.SIGKILL)
    psutil.wait_procs(list(left), timeout=10)
    record.unlink(missing_ok=True)
    print(f"Ended {len(ours)} processes{f', {len(left)} of them by force' if left else ''}.")
    return 0


def processes(started: dict) -> list[psutil.Process]:
    """Everything alive that belongs to a started cluster.

    Ray's workers write their title over their environment, so they are found as descendants; a driver that has
    lost its parents still carries the mark.
    """
    marked = {process for process in psutil.process_iter() if mark_of(process) == started["mark"]}
    for pid in started["pids"].values():
        root = next((process for process in marked if process.pid == pid), None)
        if root:
            marked.update(root.children(recursive=True))
    return sorted(marked, key=lambda process: process.pid)


def is_worker(process: psutil.Process) -> bool:
    """Whether it runs a task or an actor; Ray gives it that title."""
    try:
        return "".join(process.cmdline()[:1]).startswith("ray::")
    except (psutil.Error, OSError):
        return False


def mark_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK)
    except (psutil.Error, OSError):  # it has ended, or it is another user's
        return None


def signal_if_alive(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """A port that nobody listens on, between those of Ray's workers and those that the kernel gives to clients.

    Its neighbours take theirs at any moment, before the caller listens.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_768), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port among 100 that were tried between 20000 and 32767")


if __name__ == "__main__":
    sys.exit(main())
