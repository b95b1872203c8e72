"""The order of test files, and which process takes which.

Whole paths wait much and compute little, unit tests compute. So of the processes of `make test` the first takes whole
paths from the front of the order and the others take unit tests from its end, until they meet at what is short.
"""

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

WHOLE_PATHS = (
    "test_learning", "test_survival_long", "test_embed", "test_failures", "test_real", "test_survival", "test_cluster",
    "test_demo", "test_elastic", "test_autoscaler", "test_train", "test_serve", "test_scaling", "test_console",
    "test_deploy", "test_prepare", "test_evaluation", "test_earlier",
)  # fmt: skip
"""Files of tests/e2e by their seconds, longest first."""
UNIT_TESTS = (
    "cluster/test_embed", "training/test_checkpoint", "serving/test_survival", "tests/test_config",
    "streaming/test_exactness", "benchmarks/test_serve", "benchmarks/test_gpu", "training/test_plan",
    "tests/test_layout", "streaming/test_attention", "web/test_page", "tests/test_install", "streaming/test_context",
    "cluster/test_runtime", "benchmarks/test_engine", "vision/test_encoder", "cluster/test_promotion",
)  # fmt: skip
"""Other files that take long, longest first."""


def place(item: pytest.Item) -> tuple[bool, int]:
    """The longest whole paths first, then the shorter; at the end the longest unit tests."""
    *_, folder, name = item.path.with_suffix("").parts
    if folder == "e2e":
        return False, WHOLE_PATHS.index(name) if name in WHOLE_PATHS else len(WHOLE_PATHS)
    name = f"{folder}/{name}"
    return True, -UNIT_TESTS.index(name) if name in UNIT_TESTS else -len(UNIT_TESTS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=place)


class FromBothEnds(LoadFileScheduling):
    """Hands out a file at a time: the first process gets the first that is left, every other the last."""

    def _assign_work_unit(self, node: WorkerController) -> None:
        if self.workqueue and node is not self.nodes[0]:
            self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._assign_work_unit(node)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FromBothEnds | None:
    """With `--dist loadfile`."""
    return FromBothEnds(config, log) if config.getoption("dist") == "loadfile" else None
