"""The pictures of a run: there is one for whatever the run has numbers of."""

import json
from pathlib import Path

import numpy as np
from matplotlib.image import imread

from prospect.reports.curves import loss_figure, plot_run, threshold_figure
from prospect.training.events import drop_repeats


def step(number: int, **parts: float) -> dict:
    return {"kind": "step", "step": number, "loss": sum(parts.values()), "parts": parts}


def point(threshold: float, f1: float) -> dict:
    return {"threshold": threshold, "f1": f1, "precision": f1, "recall": f1, "events": 40}


CALIBRATION = {
    "thresholds": {"kitchen": {"speak": 0.5}, "default": {"speak": 0.5, "update": 0.1}},
    "curves": {
        name: {dataset: [point(0.1, 0.4), point(0.5, 0.6)] for dataset in ("kitchen", "office", "default")}
        for name in ("update", "speak")
    },
}


def test_a_run_is_drawn_as_far_as_it_has_numbers(tmp_path: Path) -> None:
    assert plot_run(tmp_path, []) == []
    events = [*(step(n, speak=1 / (n + 1), state=0.5) for n in range(30)), step(20, speak=9.0)]
    events.append(
        {"kind": "validation", "step": 29, "losses": {"loss": 0.7, "speak": 0.2}, "scores": {"speak_f1": 0.4}}
    )
    assert [file.name for file in plot_run(tmp_path, events)] == ["losses.png", "scores.png"]
    head = {"recall": [0.2, 1.0], "precision": [1.0, 0.1], "threshold": [0.9, 0.05], "labels": 90, "positives": 9}
    (tmp_path / "curves.json").write_text(json.dumps({"step": 30, "heads": {"speak": head, "update": head}}))
    (tmp_path / "calibration.json").write_text(json.dumps(CALIBRATION))
    files = plot_run(tmp_path, iter(events))
    assert [file.stem for file in files] == ["losses", "scores", "precision_recall", "thresholds"]
    assert all(np.ptp(imread(file)) > 0 for file in files)


def test_curves_hold_the_numbers_that_count() -> None:
    figure = loss_figure(drop_repeats([step(n, speak=1.0) for n in range(3)] + [step(1, speak=5.0)]))
    assert figure is not None
    raw = figure.axes[1].lines[0]
    assert (list(raw.get_xdata()), list(raw.get_ydata())) == ([1, 2, 3], [1, 1, 1]), "of a step done twice, the first"
    axes = threshold_figure(CALIBRATION).axes
    assert [axis.get_title() for axis in axes[::3]] == ["update: F1 of transitions", "speak: F1 of turns"]
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["kitchen (40)", "office (40)", "all (40)"]
    rings = [[line for line in axis.lines if line.get_markersize() == 10] for axis in (axes[0], axes[3])]
    assert [len(found) for found in rings] == [1, 2], "update is chosen for all together, speak for the kitchen too"
