"""The table of metrics, the values that a process notes, and what reads them: dashboard and documentation."""

import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from prospect.monitoring import EXPORTED_AS, METRICS, Readings
from tests.conftest import REPOSITORY

SERIES = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
EXPORTED = {f"{EXPORTED_AS}{each.name}{end}": each for each in METRICS.values() for end in SERIES[each.kind]}
"""By the name of each series that Prometheus gets."""


def taken(readings: Readings) -> dict[tuple[str, str], list[float]]:
    return {(each.metric.name, each.label): list(each.values) for each in readings.take()}


def test_names_follow_prometheus():
    for metric in METRICS.values():
        assert re.fullmatch(r"prospect(_[a-z]+)+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert (metric.kind == "histogram") == bool(metric.buckets), metric.name
        assert metric.kind != "histogram" or metric.name.endswith("_seconds")
        assert list(metric.buckets) == sorted(metric.buckets)
        assert metric.tag not in {"session", "session_id"}
        assert metric.help.endswith(".")


def test_counters_grow_gauges_stand_and_histograms_take_each_value():
    readings = Readings()
    for _ in range(2):
        readings.count("prospect_frames_total", "picture")
    readings.count("prospect_frames_total", "embedding", by=3)
    readings.total("prospect_engine_frames_total", 10)
    readings.set("prospect_sessions", 4)
    readings.set("prospect_sessions", 5)
    readings.observe("prospect_step_seconds", 0.1)
    readings.observe("prospect_step_seconds", 0.2)
    assert taken(readings) == {
        ("prospect_frames_total", "picture"): [2],
        ("prospect_frames_total", "embedding"): [3],
        ("prospect_engine_frames_total", ""): [10],
        ("prospect_sessions", ""): [5],
        ("prospect_step_seconds", ""): [0.1, 0.2],
    }
    readings.total("prospect_engine_frames_total", 12)
    assert taken(readings) == {("prospect_sessions", ""): [5], ("prospect_engine_frames_total", ""): [2]}


def test_no_value_is_lost_between_threads():
    readings, seen, done = Readings(), 0.0, threading.Event()

    def note() -> None:
        for _ in range(20_000):
            readings.count("prospect_decisions_total", "silent")
        done.set()

    thread = threading.Thread(target=note)
    thread.start()
    while not done.is_set():
        seen += sum(each.values[0] for each in readings.take())
    thread.join()
    assert seen + sum(each.values[0] for each in readings.take()) == 20_000


def test_a_note_costs_microseconds():
    readings = Readings()
    began = time.perf_counter()
    for _ in range(10_000):
        readings.count("prospect_decisions_total", "silent")
        readings.observe("prospect_decision_seconds", 0.1)
    assert time.perf_counter() - began < 10_000 * 20e-6


def expressions(node: Any) -> Iterator[str]:
    """All PromQL of a dashboard."""
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key in ("expr", "query") and isinstance(value, str))
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        yield from expressions(child)


def named_series(text: str) -> set[str]:
    return set(re.findall(r"\bray_prospect_\w+", text))


def test_the_dashboard_reads_metrics_that_exist_and_all_of_them():
    dashboard = json.loads((REPOSITORY / "deploy" / "grafana.json").read_text())
    read = set().union(*map(named_series, expressions(dashboard)))
    assert read <= set(EXPORTED)
    assert {EXPORTED[name].name for name in read} == set(METRICS)
    rows = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    assert rows == ["Sessions", "Latency", "Engines and encoders", "Store and moves", "Jobs"]


def test_the_dashboard_groups_by_labels_that_exist():
    dashboard = json.loads((REPOSITORY / "deploy" / "grafana.json").read_text())
    for expression in expressions(dashboard):
        tags = {EXPORTED[name].tag for name in named_series(expression)}
        for grouped in re.findall(r"\bby \(([^)]*)\)", expression):
            labels = {label.strip() for label in grouped.split(",")} - {"le", "NodeAddress", "WorkerId"}
            assert labels <= tags, expression


@pytest.fixture(scope="module")
def operations() -> str:
    text = (REPOSITORY / "docs" / "operations.md").read_text()
    return text[text.index("\n## Monitoring") :]


def test_the_documented_table_is_the_table(operations: str):
    rows = [
        f"| `{each.name}` | {each.kind} | {each.by} | {each.help[:-1]}{f' (`{each.tag}`)' if each.tag else ''} |"
        for each in METRICS.values()
    ]
    documented = [line for line in operations.splitlines() if line.startswith("| `prospect_")]
    assert documented == rows


def test_documented_alerts_read_metrics_that_exist(operations: str):
    read = named_series(operations)
    assert read
    assert read <= set(EXPORTED)
