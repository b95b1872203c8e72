"""The Dockerfile and the script that its RUN lines call."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

BIN = Path(sys.executable).parent
SCRIPT = REPOSITORY / "scripts" / "image.sh"
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(SCRIPT), *arguments], capture_output=True, text=True)


def names(requirements: str) -> set[str]:
    return set(re.findall(r"^([a-zA-Z0-9_.-]+)==", requirements, re.MULTILINE))


def test_each_run_line_calls_a_step_of_the_script():
    steps = set(re.findall(r"^([a-z]+)\(\) \{", SCRIPT.read_text(), re.MULTILINE)) - {"locked"}
    called = re.findall(r"^RUN scripts/image\.sh (\w+)", DOCKERFILE, re.MULTILINE)
    assert len(called) == len(re.findall("^RUN ", DOCKERFILE, re.MULTILINE))
    assert set(called) | {"requirements"} == steps


def test_the_image_is_not_root_has_no_secrets_and_copies_what_exists():
    assert re.findall("^USER (.+)", DOCKERFILE, re.MULTILINE) == ["1000"]
    assert not re.search("PASSWORD|SECRET|_TOKEN|_KEY", DOCKERFILE)
    copied = {each for line in re.findall("^COPY (.+) .+", DOCKERFILE, re.MULTILINE) for each in line.split()}
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert {f"!{each}" for each in copied} == {line for line in ignored if line.startswith("!")}
    assert all((REPOSITORY / each).exists() for each in copied)


def test_an_image_for_cpus_has_none_of_nvidias_libraries():
    every, cuda, cpu = (REPOSITORY / "requirements.lock").read_text(), run("requirements", "cuda"), run("requirements")
    assert cuda.stdout == every
    left_out = names(every) - names(cpu.stdout)
    assert {"torch", "torchvision", "triton", "nvidia-cublas"} <= left_out
    assert all(re.match("torch(vision)?$|triton$|nvidia-|cuda-", name) for name in left_out)
    assert len(re.findall("--hash=", cpu.stdout)) > 1000


def test_the_requirements_for_cpus_can_be_installed(tmp_path: Path):
    """Each with its hash: what is printed is a file that uv reads whole."""
    file = tmp_path / "requirements.txt"
    file.write_text(run("requirements", "cpu").stdout)
    command = [str(BIN / "uv"), "pip", "install", "--python", sys.executable, "--dry-run", "--offline", "--no-deps"]
    command += ["--require-hashes", "-r", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("packages", "tpu"), "error: DEVICE (tpu) must be cpu or cuda\n"),
        (("everything",), "error: step (everything) must be one of system, requirements, packages, project\n"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: tuple[str, ...], sentence: str):
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (2, sentence)


def test_hadolint_takes_the_dockerfile(tmp_path: Path):
    subprocess.run([str(BIN / "hadolint"), str(REPOSITORY / "Dockerfile")], check=True)
    wrong = tmp_path / "Dockerfile"
    wrong.write_text("FROM debian:latest\nRUN cd / && apt-get install wget\n")
    assert subprocess.run([str(BIN / "hadolint"), str(wrong)], capture_output=True).returncode == 1
