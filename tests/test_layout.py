"""Rules that hold for files and imports, and for what a first word waits for; .importlinter has the rest."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from prospect import cli
from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "platform" / "prospect"
HEAVY = {"ray", "deepspeed", "mlflow"}
MODULES = sorted(PACKAGE.rglob("*.py"))
SLOW = {
    "torch", "torchvision", "transformers", "peft", "deepspeed", "bitsandbytes", "mlflow", "sklearn", "matplotlib",
    "ray", "pandas", "open_clip", "timm", "onnxruntime", "openai", "sentence_transformers", "nltk", "rouge_score",
}  # fmt: skip
"""What takes a second or more to import, alone or with what it drags along."""
JOBS = sorted(path.stem for path in (REPOSITORY / "jobs").glob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def at_the_edge(path: Path) -> bool:
    """Whether a module may import Ray, DeepSpeed and MLflow."""
    edges = {PACKAGE / name for name in ("benchmarks", "cluster", "serving", "tracking")}
    return path == PACKAGE / "training" / "zero.py" or bool(edges & set(path.parents))


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


def imported(path: Path) -> Iterator[str]:
    """Top-level names that a file imports, wherever in it."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module).split(".")[0]


def test_the_source_root_is_no_package() -> None:
    """`platform/__init__.py` would hide Python's own module `platform`."""
    assert not (REPOSITORY / "platform" / "__init__.py").exists()


def test_only_the_edges_import_ray_deepspeed_and_mlflow() -> None:
    assert not [module_name(path) for path in MODULES if not at_the_edge(path) and HEAVY & set(imported(path))]


def test_the_package_imports_neither_jobs_nor_serve_nor_tests() -> None:
    assert not [module_name(path) for path in MODULES if {"jobs", "serve", "tests"} & set(imported(path))]


def test_every_script_of_jobs_is_a_job_of_the_command() -> None:
    """`prospect serve` has its script in serve/."""
    assert set(JOBS) == set(cli.JOBS) - {"serve"}
    for job in cli.JOBS.values():
        module, _, name = job.function.partition(":")
        [file] = [path for path in MODULES if module_name(path) == module]
        assert name in {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}


ASKS = {
    "is_available": {"devices.py"},
    "cluster_resources": {"cluster/gpus.py"},
}
"""What asks torch for a GPU and Ray for the cluster's size, and the modules that may."""


@pytest.mark.parametrize("name", ASKS)
def test_one_module_asks_torch_for_a_gpu_and_one_asks_ray(name: str) -> None:
    """Everybody else asks `prospect.devices` or `cluster.runtime`, so that one rule decides for all."""
    asking = [path for path in MODULES if any(isinstance(n, ast.Attribute) and n.attr == name for n in nodes(path))]
    assert {path.relative_to(PACKAGE).as_posix() for path in asking} == ASKS[name]


def test_no_job_hides_a_library() -> None:
    """A script's folder comes first on sys.path: a job `evaluate.py` would stand for the library of that name."""
    taken = sys.stdlib_module_names | {"evaluate", "datasets", "transformers", "torch", "ray", "mlflow", "deepspeed"}
    assert not {path.stem for path in (REPOSITORY / "jobs").glob("*.py")} & taken


def test_all_but_the_edges_import_without_ray_deepspeed_and_mlflow() -> None:
    """A notebook or a bare GPU machine has none of them."""
    plain = [module_name(path) for path in MODULES if not at_the_edge(path)]
    script = "\n".join([
        "import importlib, sys",
        f"sys.modules.update(dict.fromkeys({sorted(HEAVY)}))",  # None: an import of it raises
        f"for name in {plain}: importlib.import_module(name)",
    ])  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def slow_after(script: str) -> set[str]:
    """The slow libraries that a fresh process has imported once it has run `script`."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{script}\nprint(*sys.modules)"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return SLOW & {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize("job", JOBS)
def test_a_job_says_its_first_word_without_a_slow_library(job: str) -> None:
    """Its script is imported, its configuration composed, a mistake in it found and its help printed."""
    script = f"""
import runpy
from prospect.cli import load_config, schema_of
from prospect.config.cli import Command, usage
from prospect.errors import ConfigError
runpy.run_path("jobs/{job}.py", run_name="job")
load_config("{job}")
usage("{job}", Command.script("{job}"), schema_of("{job}"))
try:
    load_config("{job}", ["nothing=1"])
except ConfigError:
    pass
"""
    assert slow_after(script) == set()


@pytest.mark.parametrize("job", ["embed", "label", "train", "eval"])
def test_a_job_without_data_says_so_without_a_slow_library(job: str, tmp_path: Path) -> None:
    (tmp_path / "dialogues.json").write_text("{}")
    script = f"""
import runpy
root = "storage.root={tmp_path}"
for data in ("{tmp_path}/none", "{tmp_path}/dialogues.json"):
    sys.argv = ["jobs/{job}.py", root, "data=clips", f"data.path={{data}}"]
    try:
        runpy.run_path("jobs/{job}.py", run_name="__main__")
    except SystemExit as end:
        assert end.code == 2, end.code
"""
    assert slow_after(script) == set()


@pytest.mark.parametrize(
    "module", ["prospect.dialogue", "prospect.client", "prospect.probe", "prospect.cluster.controller"]
)
def test_a_light_module_imports_no_slow_library(module: str) -> None:
    """Users of the client and of records have none of them; Ray's controller imports only what Ray itself does."""
    submodules = sorted(module_name(path) for path in MODULES if module_name(path).startswith(module))
    assert slow_after(f"import importlib\nfor name in {submodules}: importlib.import_module(name)") <= (
        {"ray", "pandas"} if module.endswith("controller") else set()
    )


def test_a_server_s_gateway_and_the_process_that_builds_it_import_no_torch() -> None:
    assert slow_after("import serve.app") <= {"ray", "pandas"}


def test_one_function_takes_the_first_line_of_an_error() -> None:
    """An error without a message has no first line: `str(error).splitlines()[0]` would raise another error."""
    own = re.compile(r"str\(error\).*splitlines\(\)\[0\]")
    assert not [module_name(path) for path in MODULES if own.search(path.read_text())]
