"""The commands a user types: `make up`, `ray job submit`, `make down`, and a cluster that never saw the package."""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from scripts.cluster import ALONE, free_port, listens, mark_of, processes
from tests.conftest import REPOSITORY
from tests.listening import files_with, listeners, reachable

pytestmark = pytest.mark.e2e

BIN = Path(sys.executable).parent
RECORD = {
    "tea_1": {
        "dataset": "home",
        "goal": "Make tea",
        "duration": 68.0,
        "steps": [
            {"start": 4.0, "end": 31.5, "text": "Boil water"},
            {"start": 31.5, "end": 40.0, "text": "Add the bag"},
        ],
        "turns": [{"time": 31.5, "role": "assistant", "text": "The water boils. Add the bag."}],
    }
}

SPREAD = """
import time, ray
ray.init(log_to_driver=False)
deadline = time.monotonic() + 60
while len([node for node in ray.nodes() if node["Alive"]]) < 2 and time.monotonic() < deadline:
    time.sleep(0.5)

@ray.remote(num_cpus=1)
def where():
    import prospect.hashing
    time.sleep(3)
    return ray.get_runtime_context().get_node_id()

group = ray.util.placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
tasks = [where.options(scheduling_strategy=strategy(group, i)).remote() for i in range(2)]
print("nodes:", len(set(ray.get(tasks))))
"""
"""Waits until two nodes are there, then runs one task on each."""


def run(command: Sequence[str], env: Mapping[str, str], cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=dict(env), cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def submit(arguments: Sequence[str], env: Mapping[str, str]) -> str:
    """What `ray job submit ARGUMENTS` prints; it has to succeed."""
    done = run([str(BIN / "ray"), "job", "submit", *arguments], env)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


ONE = ["training.num_workers=1", "training.threads_per_worker=1"]
"""Other tests have the second core."""
SMALL = ["corpus.num_train=3", "corpus.num_validation=1", "corpus.num_test=1"]


def whole_path(options: Sequence[str], values: Sequence[str], env: Mapping[str, str]) -> str:
    """The four jobs one after the other, on a corpus of a few videos; what the last one prints."""
    prepare(options, values, env)
    steps = ["training.max_steps=6", "training.warmup_steps=2", "training.save_every=3"]
    steps += [*ONE, "training.calibration.enabled=false"]
    submit([*options, "--", "python", "jobs/train.py", *SMALL, *steps, *values], env)
    return submit([*options, "--", "python", "jobs/eval.py", *SMALL, *values], env)


def prepare(options: Sequence[str], values: Sequence[str], env: Mapping[str, str]) -> None:
    """The first two of the four; what is embedded is found again."""
    for job, more in (("embed", ["embedding.num_encoders=1"]), ("label", [])):
        submit([*options, "--", "python", f"jobs/{job}.py", *SMALL, *more, *values], env)


def labels_in(root: Path) -> str:
    return (root / "labels" / "labels.tsv").read_text()


@pytest.fixture(scope="module")
def clean_env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a shell of its own, with a token of its own."""
    token = tmp_path_factory.mktemp("token") / "auth_token"
    token.write_text(secrets.token_hex(32))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_", "PROSPECT_"))}
    path = f"{BIN}{os.pathsep}{kept['PATH']}"
    return {**kept, "PATH": path, "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def session_folder() -> Iterator[Path]:
    """Ray's session folder; its sockets need a short path."""
    folder = Path(tempfile.mkdtemp(prefix="pr", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "dialogues.json"
    path.write_text(json.dumps(RECORD))
    return path


@dataclass
class Cluster:
    """What `make up` started."""

    arguments: list[str]
    """The variables that `make` takes."""
    output: str
    run_dir: Path
    storage: Path
    env: dict[str, str]
    """Of the user's other shell: what `make up` printed to export."""


@pytest.fixture(scope="module")
def cluster(
    clean_env: dict[str, str], session_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    with started(clean_env, tmp_path_factory.mktemp("cluster"), session_folder) as cluster:
        yield cluster


@contextmanager
def started(clean_env: dict[str, str], root: Path, session_folder: Path) -> Iterator[Cluster]:
    """What `make up` starts, to the end of the block."""
    variables = {
        "VENV": sys.prefix, "RAY_PORT": free_port(), "DASHBOARD_PORT": free_port(), "MLFLOW_PORT": free_port(),
        "STORAGE": root / "outputs", "RUN_DIR": root / "run", "RAY_TEMP_DIR": session_folder,
    }  # fmt: skip
    # The environment that runs the tests is complete: make has nothing to install.
    arguments = [f"--assume-old={sys.prefix}/.installed", *(f"{name}={value}" for name, value in variables.items())]
    done = run(["make", "up", *arguments], clean_env)
    try:
        assert done.returncode == 0, done.stderr
        env = clean_env | dict(re.findall(r"export (\w+)=(\S+)", done.stdout))
        yield Cluster(arguments, done.stdout, root / "run", root / "outputs", env)
    finally:
        run(["make", "down", *arguments], clean_env)


def test_make_up_says_what_to_type(cluster: Cluster) -> None:
    assert cluster.env["RAY_AUTH_MODE"] == "token"
    assert cluster.env["MLFLOW_TRACKING_URI"].startswith("http://127.0.0.1:")
    assert "ray job submit -- python jobs/train.py" in cluster.output


def test_a_second_make_up_is_refused(cluster: Cluster, clean_env: dict[str, str], tmp_path: Path) -> None:
    done = run(["make", "--silent", "up", *cluster.arguments], clean_env)
    assert done.returncode != 0
    assert "error: `make up` has started a cluster here already" in done.stderr
    done = run(["make", "--silent", "up", *cluster.arguments, f"RUN_DIR={tmp_path}"], clean_env)
    assert done.returncode != 0
    assert re.search(r"error: something already listens on port \d+: .* RAY_PORT=\d+", done.stderr)


@pytest.fixture(scope="module")
def submitted(cluster: Cluster, dialogues: Path) -> list[subprocess.CompletedProcess[str]]:
    """A label job and a mistaken one; they run at once, since most of a short job's time is waiting."""
    values = (["data=clips", f"data.path={dialogues}", "data.holdout=0"], ["storage.root=here"])
    commands = ([str(BIN / "ray"), "job", "submit", "--", "python", "jobs/label.py", *each] for each in values)
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda command: run(command, cluster.env), commands))


def test_the_literal_command_works(cluster: Cluster, submitted: list[subprocess.CompletedProcess[str]]) -> None:
    done, _ = submitted
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert f"configuration: {cluster.storage}/configs/label-" in done.stdout
    assert "Boil water" in labels_in(cluster.storage)


def test_a_mistake_is_one_line_of_the_jobs_log(submitted: list[subprocess.CompletedProcess[str]]) -> None:
    _, done = submitted
    assert done.returncode != 0
    assert "error: `storage.root` is the relative path `here`" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout


def test_the_whole_path_by_submitted_jobs(cluster: Cluster) -> None:
    printed = whole_path([], [], cluster.env)
    assert "models:/prospect-dst/1 is the champion now" in printed
    assert (cluster.storage / "evaluations").is_dir()


def test_all_that_make_up_starts_listens_on_loopback_alone(cluster: Cluster, submitted: list) -> None:
    """Ray's processes, the workers of the jobs, and MLflow."""
    ours = processes(json.loads((cluster.run_dir / "cluster.json").read_text()))
    ports = {port for _, _, port in listeners(ours)}
    assert ports > {int(argument.split("=")[1]) for argument in cluster.arguments if "_PORT=" in argument}
    assert len(ports) > 10
    assert not reachable(ours)


def test_the_token_is_in_no_log(cluster: Cluster, submitted: list, session_folder: Path) -> None:
    token = Path(cluster.env["RAY_AUTH_TOKEN_PATH"]).read_text()
    logs = [file for file in session_folder.glob("session_*/logs") if not file.is_symlink()]
    assert list(cluster.run_dir.glob("*.log"))
    assert logs
    assert not files_with([cluster.run_dir, *logs], [token])


@pytest.mark.long
def test_two_raylets_on_one_machine(clean_env: dict[str, str], tmp_path: Path, session_folder: Path) -> None:
    with started(clean_env | {ALONE: "1"}, tmp_path, session_folder / "2") as cluster:
        _spread(cluster)


def _spread(cluster: Cluster) -> None:
    command = [
        str(BIN / "ray"), "start", f"--address={cluster.env['RAY_ADDRESS']}", "--block", "--num-cpus=1",
        f"--dashboard-agent-listen-port={free_port()}",
    ]  # fmt: skip
    second = subprocess.Popen(command, env=cluster.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        done = run([sys.executable, "-c", SPREAD], cluster.env)
        assert "nodes: 2" in done.stdout, done.stderr
        prepare([], [], cluster.env)
        # More workers than the head has CPUs: the run spans both nodes.
        workers = (os.cpu_count() or 1) + 1
        values = [f"training.num_workers={workers}", "training.run_name=spread"]
        values += ["training.max_steps=4", "training.warmup_steps=2"]
        printed = submit(["--", "python", "jobs/train.py", *SMALL, *values], cluster.env)
        assert f"4 steps on {workers} CPU workers" in printed
        assert "finished after 4 steps" in printed
    finally:
        end(second)


def test_make_down_ends_exactly_what_make_up_started(cluster: Cluster, clean_env: dict[str, str]) -> None:
    started = json.loads((cluster.run_dir / "cluster.json").read_text())
    ours = processes(started)
    assert len(ours) > 5
    stranger = subprocess.Popen(["sleep", "300"])
    done = run(["make", "--silent", "down", *cluster.arguments], clean_env)
    assert done.stdout.startswith(f"Ended {len(ours)} processes"), done.stdout + done.stderr
    assert not [process for process in ours if process.is_running()]
    assert not [process for process in psutil.process_iter() if mark_of(process) == started["mark"]]
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()
    ports = [int(argument.split("=")[1]) for argument in cluster.arguments if "_PORT=" in argument]
    assert not any(listens(port) for port in ports)
    assert "Nothing to end" in run(["make", "--silent", "down", *cluster.arguments], clean_env).stdout


@pytest.mark.long
def test_a_cluster_that_never_saw_the_package(
    clean_env: dict[str, str], dialogues: Path, tmp_path: Path, session_folder: Path
) -> None:
    """Its environment sees the ordinary packages of this one through a path file, and editable ones not."""
    second = tmp_path / "second"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(second)], check=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(second)}))
    (site / "ordinary.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    python = str(second / "bin" / "python")
    assert "No module named 'prospect'" in run([python, "-c", "import ray, prospect"], clean_env, tmp_path).stderr
    port, dashboard = free_port(), free_port()
    env = clean_env | {"RAY_AUTH_MODE": "token", "PATH": f"{second}/bin{os.pathsep}{clean_env['PATH']}"}
    head = subprocess.Popen(
        [
            python, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}",
            f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}",
            f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={session_folder}/3",
        ],
        env=env, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until_listening(dashboard)
        job = ["--runtime-env", "configs/runtime_env.yaml", "--", "python", "jobs/label.py", "data=clips"]
        values = [f"data.path={dialogues}", "data.holdout=0", f"storage.root={tmp_path}/outputs"]
        submit([*job, *values], env | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"})
        assert "Boil water" in labels_in(tmp_path / "outputs")
        there = env | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
        options = ["--runtime-env", "configs/runtime_env.yaml"]
        printed = whole_path(options, [f"storage.root={tmp_path}/outputs"], there)
        assert "models:/prospect-dst/1 is the champion now" in printed
    finally:
        end(head)


def wait_until_listening(port: int) -> None:
    for _ in range(120):
        if listens(port):
            return
        time.sleep(0.5)
    pytest.fail(f"nothing listens on port {port} after a minute")


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to a `ray start --block`, then the end of whatever is left of it."""
    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.terminate()
    try:
        process.wait(timeout=45)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for left in psutil.wait_procs(tree, timeout=5)[1]:
        left.kill()
