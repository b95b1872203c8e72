"""Rules that hold for files and imports; import-linter (.importlinter) has the rest."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "platform" / "prospect"
HEAVY = {"ray", "deepspeed", "mlflow"}
MODULES = sorted(PACKAGE.rglob("*.py"))
FOR_JOBS = (PACKAGE / "config.py", PACKAGE / "pipeline.py")
"""What jobs/ import: they know every section and every job, and with them Ray and MLflow."""


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def at_the_edge(path: Path) -> bool:
    """Whether a module may import Ray, DeepSpeed and MLflow."""
    return path.name in {"job.py", "zero.py", "tracking.py"} or PACKAGE / "benchmarks" in path.parents


def imported(path: Path) -> Iterator[str]:
    """Top-level names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module).split(".")[0]


def test_the_source_root_is_no_package() -> None:
    """`platform/__init__.py` would hide Python's own module `platform`."""
    assert not (REPOSITORY / "platform" / "__init__.py").exists()


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_only_the_edges_import_ray_deepspeed_and_mlflow(path: Path) -> None:
    assert at_the_edge(path) or not HEAVY & set(imported(path))


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_the_package_imports_neither_jobs_nor_serve_nor_tests(path: Path) -> None:
    assert not {"jobs", "serve", "tests"} & set(imported(path))


def test_no_job_hides_a_library() -> None:
    """A script's folder comes first on sys.path: a job `evaluate.py` would stand for the library of that name."""
    taken = sys.stdlib_module_names | {"evaluate", "datasets", "transformers", "torch", "ray", "mlflow", "deepspeed"}
    assert not {path.stem for path in (REPOSITORY / "jobs").glob("*.py")} & taken


def test_all_but_the_edges_import_without_ray_deepspeed_and_mlflow() -> None:
    """A notebook or a bare GPU machine has none of them."""
    plain = [module_name(path) for path in MODULES if not at_the_edge(path) and path not in FOR_JOBS]
    script = "\n".join([
        "import importlib, sys",
        f"sys.modules.update(dict.fromkeys({sorted(HEAVY)}))",  # None: an import of it raises
        f"for name in {plain}: importlib.import_module(name)",
    ])  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
