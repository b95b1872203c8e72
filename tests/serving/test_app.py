"""`serve run` hands its own options to the Ray that our builder has to join first."""

from typing import Any

import pytest
import ray

from serve.app import _join

NONE = {"address": None, "runtime_env": None, "runtime_env_json": None, "working_dir": None}


@pytest.mark.parametrize(
    ("options", "address", "environment"),
    [
        ({}, None, {}),
        ({"address": "auto"}, "auto", {}),
        ({"working_dir": "."}, None, {"working_dir": "."}),
        ({"runtime_env_json": '{"env_vars": {"A": "b"}}', "working_dir": "."}, None,
         {"env_vars": {"A": "b"}, "working_dir": "."}),
    ],
)  # fmt: skip
def test_it_joins_as_serve_run_would(
    options: dict[str, str], address: str | None, environment: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(ray, "init", lambda **named: asked.update(named))
    _join({**NONE, **options})
    assert asked == {"address": address, "namespace": "serve", "runtime_env": environment}
