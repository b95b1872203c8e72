"""Every suite is found by its name."""

from importlib import import_module
from typing import get_args

import pytest

from prospect.benchmarks.settings import Suite

NAMES = [suite.model_fields["name"].default for suite in get_args(get_args(Suite)[0])]


@pytest.mark.parametrize("name", NAMES)
def test_a_suite_s_module_runs_it(name: str) -> None:
    assert callable(import_module(f"prospect.benchmarks.{name}.suite").run)
