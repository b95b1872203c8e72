"""The package as others install it: a wheel in an empty folder, the client without torch and Ray."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.bare import LIGHT, MISSING
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files, in a folder of their own; built from a copy, for a build leaves files behind."""
    folder, copy = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source")
    for name in ("platform", "configs"):
        shutil.copytree(REPOSITORY / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", folder,
         copy],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return folder


def prospect(installed: Path, folder: Path, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """`prospect ARGUMENTS` of the wheel, in an empty folder."""
    script = f"{before}\nimport prospect.cli as cli\nassert cli.__file__.startswith({str(installed)!r})\ncli.main()"
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=folder, env={"PYTHONPATH": str(installed)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_wheel_plans_a_training_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    done = prospect(installed, tmp_path, "train", "plan=true", "card=24GB")
    assert done.returncode == 0, done.stderr
    assert "The run fits a card of 24GB" in done.stdout


def test_a_wheel_serves_from_an_empty_folder_or_says_what_is_missing(installed: Path, tmp_path: Path) -> None:
    done = prospect(installed, tmp_path, "serve", "serving.model=/nowhere")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "/nowhere" in done.stderr


def test_the_command_names_its_jobs_and_the_near_miss(installed: Path, tmp_path: Path) -> None:
    assert "  label      Turn annotations into labels" in prospect(installed, tmp_path, "--help").stdout
    assert "usage: prospect eval" in prospect(installed, tmp_path, "eval", "--help").stdout
    done = prospect(installed, tmp_path, "trian")
    assert (done.returncode, "did you mean `train`?" in done.stderr) == (2, True)


@pytest.mark.parametrize("job", ["train plan=true", "serve", "label"])
def test_an_import_whose_extra_is_missing_names_it(job: str, installed: Path, tmp_path: Path) -> None:
    done = prospect(installed, tmp_path, *job.split(), before=LIGHT.format(missing=MISSING))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"which is not installed: pip install 'prospect[{job.split()[0]}]'" in done.stderr


def test_the_client_and_the_records_need_no_extra(installed: Path, tmp_path: Path) -> None:
    script = f"""{LIGHT.format(missing=MISSING)}
import prospect
with prospect.ProspectClient("http://localhost:1"):
    pass
prospect.Dialogue
prospect.load_config("serve")
print(prospect.__version__)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={"PYTHONPATH": str(installed)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
