"""The embedding job as a process of its own, which tests start, watch and kill: -m tests.e2e.embed_runs ..."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import REPOSITORY

REPORT = "report: "


class Run:
    """One run of the job over a folder of videos."""

    def __init__(self, videos: Path, store: Path, image_size: int = 64) -> None:
        self.store = store
        arguments = [sys.executable, "-m", "tests.e2e.embed_runs", str(videos), str(store), str(image_size)]
        self._process = subprocess.Popen(
            arguments, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        self._root = psutil.Process(self._process.pid)
        self.peak_bytes = 0

    def wait(self) -> dict[str, Any]:
        """The report of a run that ends well."""
        output = self.end()
        assert self._process.returncode == 0, output
        [report] = [line for line in output.splitlines() if line.startswith(REPORT)]  # Ray may speak before and after
        return json.loads(report.removeprefix(REPORT))

    def end(self) -> str:
        """What a run printed, once it and all its processes are gone."""
        return self._process.communicate(timeout=400)[0].decode()

    def until_finished(self, number: int) -> None:
        """Returns when the store holds that many videos, the run still being under way."""
        while len(list(self.store.glob("*.safetensors"))) < number:
            assert self._process.poll() is None, self.end()
            time.sleep(0.005)
        assert self._process.poll() is None, "the run was over before it could be disturbed"

    def workers(self, stage: str) -> list[psutil.Process]:
        """Ray's processes that run a stage now; Ray names them after it."""
        return [process for process in self.children() if stage in _title(process)]

    def children(self) -> list[psutil.Process]:
        """All processes below the driver's: Ray's own, and its workers."""
        return self._root.children(recursive=True)

    def kill_driver(self) -> None:
        """`kill -9` of the driver alone. Ray and its workers go with it, but two agents stay for a minute."""
        children = self.children()
        self._process.kill()
        self._process.wait()
        _, alive = psutil.wait_procs(children, timeout=15)
        for process in alive:
            _kill(process)

    def kill_ray(self) -> None:
        """`kill -9` of every process but the driver."""
        children = self.children()
        for process in children:
            _kill(process)

    def interrupt(self) -> None:
        """Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Keeps the peak of the memory of all processes, shared memory counted once."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.25):
                self.peak_bytes = max(self.peak_bytes, sum(map(_memory, [self._root, *self.children()])))

        thread = threading.Thread(target=watch)
        thread.start()
        yield
        over.set()
        thread.join()


def _kill(process: psutil.Process) -> None:
    _quietly(process.kill)


def _title(process: psutil.Process) -> str:
    return _quietly(lambda: " ".join(process.cmdline())) or ""


def _memory(process: psutil.Process) -> int:
    return _quietly(lambda: process.memory_full_info().pss) or 0


def _quietly(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except psutil.NoSuchProcess:
        return None


def main(videos: str, store: str, image_size: str) -> None:
    """The job itself, on a Ray of its own with two CPUs."""
    import ray

    from prospect.cluster.embed import embed_videos
    from prospect.vision.report import VideoSource
    from prospect.vision.settings import VisionSettings
    from prospect.vision.weights import TINY

    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    settings = VisionSettings(model=TINY, weights="random:0", image_size=int(image_size), batch_size=16)
    sources = [VideoSource(path.stem, str(path)) for path in sorted(Path(videos).glob("*.mp4"))]
    print(REPORT + json.dumps(embed_videos(sources, settings, store).to_json()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
