"""How many engines the sessions need; tests/e2e/test_scaling.py has a real Serve decide it."""

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from prospect.model.checkpoint import LoadedModel
from prospect.monitoring import Readings
from prospect.serving import pace
from prospect.serving.autoscaling import SESSIONS, STEP_S, SessionPolicy
from prospect.serving.pace import Pace
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.settings import StreamingSettings
from prospect.streaming.types import SessionSpec
from tests.serving.models import CONTEXT


def context(sessions: list[list[float]], steps: list[list[float]] | None = None, running: int | None = None) -> Any:
    """What Serve tells a policy: each replica's reports, the latest last."""
    steps = [[0.0]] * len(sessions) if steps is None else steps
    series = {
        name: {index: [SimpleNamespace(value=value) for value in values] for index, values in enumerate(each)}
        for name, each in ((SESSIONS, sessions), (STEP_S, steps))
    }
    running = len(sessions) if running is None else running
    return SimpleNamespace(raw_metrics=series, current_num_replicas=running, target_num_replicas=running)


@pytest.mark.parametrize(
    ("told", "needed"),
    [
        (context([[0]]), 0),
        (context([[3, 8]]), 0.5),
        (context([[8], [16]]), 1.5),
        (context([[20]]), 1.25),
        (context([[2], [0]], [[0.5], [0.0]]), 2),
        (context([[16], [16]], [[0.1], [0.25]]), 2),
        (context([], running=2), 2),
        (context([[1], []], running=2), 2),
    ],
)
def test_engines_are_filled_by_sessions_and_by_the_time_of_their_steps(told: Any, needed: float):
    assert SessionPolicy(16, 0.25)(told) == (needed, {})


def test_a_policy_goes_to_serves_controller_by_value():
    policy = AutoscalingPolicy(policy_function=SessionPolicy, policy_kwargs={"target_sessions": 4, "max_step_s": 1.0})
    config = AutoscalingConfig(max_replicas=3, policy=policy)
    loaded = config.policy.get_policy()(**config.policy.policy_kwargs)
    assert loaded(context([[8]])) == (2, {})


def test_an_engine_knows_its_pace(loaded: LoadedModel, monkeypatch):
    engine, readings = StreamingEngine(loaded, CONTEXT, StreamingSettings(max_sessions=2)), Readings()
    steps = Pace(readings)
    assert steps.mean_step_s() == 0
    engine.open("a", SessionSpec())
    for _ in range(2):
        engine.push_frame("a", np.zeros((1, loaded.model.config.vision_dim), np.float16))
    began = time.monotonic()
    while engine.has_work():
        steps.step(engine)
    took = steps.mean_step_s()
    assert 0 < took <= time.monotonic() - began
    summary = steps.summary()
    assert summary["decisions_per_second"] == 2 / pace.RECENT_S
    assert 0 < summary["step_p50"] <= summary["step_p95"]
    steps.step(engine)
    assert steps.mean_step_s() == took, "a step without work says nothing"
    [observed] = readings.take()
    assert observed.metric.name == "prospect_step_seconds"
    monkeypatch.setattr(pace, "RECENT_S", 0.0)
    assert steps.mean_step_s() == 0
    assert set(steps.summary().values()) == {0.0}
