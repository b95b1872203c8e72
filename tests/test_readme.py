"""What the README and docs/ tell a reader to type exists and composes."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from prospect.cli import load_config
from tests.conftest import REPOSITORY
from tests.readme import PAGES, blocks, commands, job_commands

COMMANDS = commands()
JOBS = [command for command in COMMANDS if "python jobs/" in command]
SERVE = [command for command in COMMANDS if command.startswith("serve run serve.app:app")]
MAKE_DEMO = [command for command in COMMANDS if command.startswith("make demo")]
WRITTEN = [(page, command) for page, text in PAGES.items() for command in job_commands(text)]


def compose(command: str) -> None:
    """Composes a job's command line."""
    words = shlex.split(command)
    script = next(index for index, word in enumerate(words) if word.startswith("jobs/"))
    assert (REPOSITORY / words[script]).is_file()
    load_config(words[script].removeprefix("jobs/").removesuffix(".py"), words[script + 1 :])


@pytest.fixture(autouse=True)
def away(tmp_path, monkeypatch):
    monkeypatch.setenv("PROSPECT_STORAGE_ROOT", str(tmp_path))


def test_the_readme_names_every_job_that_prepares_trains_and_scores():
    assert {name for command in JOBS for name in re.findall(r"jobs/(\w+)\.py", command)} == {
        "embed",
        "label",
        "train",
        "eval",
    }


@pytest.mark.parametrize(("page", "command"), WRITTEN)
def test_a_job_composes(page, command):
    compose(command)


def test_every_page_with_commands_is_read():
    assert {page for page, _ in WRITTEN} >= {"README.md", "docs/training.md", "docs/experiments.md", "docs/data.md"}
    assert len([command for page, command in WRITTEN if page == "README.md"]) > len(JOBS)


@pytest.mark.parametrize("page", PAGES)
def test_shell_and_python_examples_can_be_read_by_what_would_run_them(page):
    for block in blocks("python", text=PAGES[page]):
        compile(block, page, "exec")
    for block in blocks("sh", text=PAGES[page]):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)


@pytest.mark.parametrize("command", SERVE)
def test_serving_composes(command):
    load_config("serve", shlex.split(command)[3:])


@pytest.mark.parametrize("command", MAKE_DEMO)
def test_make_demo_runs_a_job_that_composes(command):
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "ARGS")}
    planned = subprocess.run(
        [*shlex.split(command), "-n"], cwd=REPOSITORY, env=env, capture_output=True, text=True, check=True
    )
    [job] = [line for line in planned.stdout.splitlines() if "jobs/demo.py" in line]
    compose(job)


@pytest.mark.parametrize("path", ["/data/My Kitchen", "/data/Mom & Dad's", "/data/a=b, (1)"])
def test_make_demo_takes_any_path(path):
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "ARGS")}
    command = ["make", "-n", "demo", "DATA=real", f"PATH_TO={path}"]
    planned = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=True)
    [job] = [line for line in planned.stdout.splitlines() if "jobs/demo.py" in line]  # within make it adds others
    words = shlex.split(job)
    assert load_config("demo", words[words.index("jobs/demo.py") + 1 :]).data.path == path


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = {target for command in COMMANDS for target in re.findall(r"^make ([a-z-]+)", command)}
    named |= {target for text in PAGES.values() for target in re.findall(r"`make ([a-z-]+)", text)}
    assert named
    assert named <= targets


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def shipped() -> list[Path]:
    """Files in which somebody reads: code, pages, settings."""
    folders = ("platform/prospect", "configs", "docs", "examples", "jobs", "scripts", "serve", "tests")
    inside = [path for folder in folders for path in (REPOSITORY / folder).rglob("*") if "fixtures" not in path.parts]
    found = [path for path in [*inside, *REPOSITORY.glob("*.md")] if path.suffix in {".py", ".md", ".yaml"}]
    return [path for path in found if path != Path(__file__).resolve()]


def test_links_lead_to_headings_and_files_that_are_there():
    broken = []
    for path in shipped():
        for target in re.findall(r"\]\(([^)\s]+)\)|(?<![\w(/])(docs/\w+\.md(?:#[\w-]+)?)", path.read_text()):
            page, _, anchor = (target[0] or target[1]).partition("#")
            base = path.parent if target[0] else REPOSITORY
            file = base / page if page else path
            if "://" in page or (target[0] and path.suffix != ".md"):
                continue
            if not file.exists() or (anchor and anchor not in anchors(file)):
                broken.append(f"{path.relative_to(REPOSITORY)}: {page}#{anchor}")
    assert not broken


def test_nothing_cites_what_does_not_ship():
    cited = re.compile(r"DESIGN \d|\breference/\w+\.md")
    assert [str(path) for path in shipped() if cited.search(path.read_text())] == []
