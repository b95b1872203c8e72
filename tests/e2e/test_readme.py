"""The README's curl and Python examples, as they stand there, against the served application."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray import serve

from prospect.config import load
from serve.app import launch
from tests.network import free_port
from tests.readme import blocks
from tests.serve.models import picture, write_model

pytestmark = pytest.mark.e2e

SECTION = "Live sessions"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Host and port of a served model."""
    folder = tmp_path_factory.mktemp("served")
    port = free_port()
    settings = [f"storage.root={folder}", f"serving.model={write_model(folder / 'model')}", f"serving.port={port}"]
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        launch(load("serve", settings))
        yield f"127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a reader would stand: with a picture."""
    (tmp_path / "frame.jpg").write_bytes(picture(0, "JPEG"))
    return tmp_path


def run(command: list[str], folder: Path) -> str:
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def documents(text: str) -> list[dict]:
    """JSON documents one after the other."""
    decoder, found = json.JSONDecoder(), []
    while text := text.lstrip():
        document, end = decoder.raw_decode(text)
        found.append(document)
        text = text[end:]
    return found


def test_the_curl_example(address: str, folder: Path):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    [example] = [block for block in blocks("sh", SECTION) if "curl" in block]
    script = example.replace("localhost:8000", address).replace("curl ", "curl -sS --noproxy '*' --fail-with-body ")
    created, pushed, viewed, closed = documents(run(["bash", "-ec", script], folder))
    assert created["session_id"] == viewed["session_id"] == closed["session_id"] == "kitchen-7"
    [frame] = pushed["frames"]
    assert 0 <= frame["p_speak"] <= 1


def test_the_python_example(address: str, folder: Path):
    [example] = blocks("python", SECTION)
    assert "127.0.0.1:8000" in example
    printed = run([sys.executable, "-c", example.replace("127.0.0.1:8000", address)], folder)
    lines = printed.splitlines()
    assert sum("type='decision'" in line for line in lines) == 2
    assert "type='session.closed'" in lines[-1]
