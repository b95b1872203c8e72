"""The run's events: nothing is lost, nothing comes twice, whoever dies."""

import io
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError
from rich.console import Console as Terminal

from prospect.cluster.controller import FailureLog
from prospect.cluster.worker_main import device_error
from prospect.cluster.workers import _explained
from prospect.errors import ConfigError
from prospect.evaluation.settings import CalibrationSettings
from prospect.streaming.settings import StreamingSettings
from prospect.training.console import LineConsole, LiveConsole, summary_table
from prospect.training.events import EventFollower, EventLog, RunEvent, drop_repeats, read_events, training_seconds
from prospect.training.metrics import metric_rows, run_tags
from prospect.training.result import TrainResult
from prospect.training.settings import TrainingError, TrainingSettings
from prospect.training.worker_spec import WorkerJob
from tests.factories import TOY_CONTEXT, TOY_MODEL


def step(log: EventLog, number: int) -> None:
    log.write("step", step=number, loss=1.0, parts={"speak": 0.5}, grad_norm=1.0, learning_rate=0.1, clips=4, tokens=9, epoch=0)  # fmt: skip # noqa: E501


def follow(file: Path, batches: list[Sequence[RunEvent]], lines: list[str] | None = None) -> EventFollower:
    return EventFollower(file, batches.append, LineConsole(2, (lines if lines is not None else []).append))


def steps(batches: list[Sequence[RunEvent]]) -> list[int]:
    return [event["step"] for batch in batches for event in batch if event["kind"] == "step"]


def test_steps_that_a_restarted_run_repeats_are_uploaded_once(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    batches: list[Sequence[RunEvent]] = []
    with follow(file, batches):
        log = EventLog(file)
        for number in (0, 1, 2):
            step(log, number)
        for number in (2, 3):
            step(EventLog(file), number)
    assert steps(batches) == [0, 1, 2, 3]


def test_a_second_job_continues_where_the_first_stopped(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    batches: list[Sequence[RunEvent]] = []
    log = EventLog(file)
    step(log, 0)
    with follow(file, batches):
        pass
    step(log, 1)
    step(log, 1)
    with follow(file, batches):
        pass
    assert steps(batches) == [0, 1]


def test_what_the_tracker_refused_comes_again(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"

    def refuse(events: Sequence[RunEvent]) -> None:
        raise ConnectionError("the server is away")

    lines: list[str] = []
    with EventFollower(file, refuse, LineConsole(1, lambda line: None), lines.append, timeout=0) as follower:
        step(EventLog(file), 0)
    assert isinstance(follower.failure, ConnectionError)
    assert lines == [
        "train  metrics cannot be uploaded for now: the server is away",
        f"train  metrics wait in {file} for the tracking server, and for this run's next start",
    ]
    batches: list[Sequence[RunEvent]] = []
    with follow(file, batches):
        pass
    assert steps(batches) == [0]


def test_half_a_line_of_a_killed_writer_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    step(EventLog(file), 0)
    with file.open("a") as killed:
        killed.write('{"kind": "step", "st')
    step(EventLog(file), 1)
    assert [event["step"] for event, _ in read_events(file)] == [0, 1]


def test_console_and_metric_names(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    lines: list[str] = []
    batches: list[Sequence[RunEvent]] = []
    with follow(file, batches, lines):
        log = EventLog(file)
        log.write("start", step=0, total_steps=4, workers=2, gpu=False, clips=7, parameters=1_900_000)  # fmt: skip
        for number in range(4):
            step(log, number)
        log.write("validation", step=3, losses={"loss": 2.0, "speak": 0.25})
        log.write("done", step=4, model_step=4, validation={"loss": 2.0, "speak": 0.25})
    assert lines[0] == "train  4 steps on 2 CPU workers, 7 clips, 1.9 M trainable"
    assert [line.split("  ")[1] for line in lines[1:3]] == ["step 2/4", "step 4/4"]
    assert lines[3:] == ["train  validation after step 4  loss 2.000  speak 0.250", "train  finished after 4 steps"]
    rows = metric_rows([event for batch in batches for event in batch])
    assert [row[0] for row in rows] == [0, 0, 1, 2, 3, 3, 3]
    assert rows[1][2].keys() >= {"train/loss", "train/loss_speak", "train/learning_rate", "train/grad_norm"}
    assert rows[-2][2] == {"validation/loss": 2.0, "validation/loss_speak": 0.25}
    assert rows[-1][2] == {"model/step": 4, "model/loss": 2.0, "model/loss_speak": 0.25}


def test_an_early_stop_says_everywhere_whose_weights_the_model_has() -> None:
    """Those of step 2 of 6: in MLflow's tags and metrics, in the console's lines and in the table at the end."""
    best = {"loss": 1.5, "speak_f1": 0.5}
    streamed = {"kind": "streaming", "time": 7.0, "step": 1, "scores": {"stream_turn_f1": 0.25}}
    events: list[RunEvent] = [
        {"kind": "stopped", "time": 6.0, "step": 6, "best_step": 2},
        streamed,
        {**streamed, "time": 8.0},  # by a run that died before it knew
        {"kind": "done", "time": 9.0, "step": 6, "model_step": 2, "validation": best},
    ]
    assert run_tags(events) == {"stopped_early": "after step 6; the model has the weights of step 2"}
    assert metric_rows([*drop_repeats(events)]) == [
        (1, 7.0, {"validation/stream_turn_f1": 0.25}),
        (1, 9.0, {"model/step": 2.0, "model/loss": 1.5, "model/speak_f1": 0.5}),
    ]
    lines: list[str] = []
    for event in events:
        LineConsole(1, lines.append)(event)
    assert lines[0] == "train  stopped early; the model will have the weights of step 2"
    assert lines[1] == "train  validation after step 2  stream_turn_f1 0.250"
    assert lines[-1] == "train  finished after 6 steps; the model has the weights of step 2"
    result = TrainResult("tea", Path("/r/tea/model"), 6, 2, 2.0, 3.0, best, {}, "abc", "dst", 3, 0)
    assert "/r/tea/model, with the weights of step 2" in table_of(result, events)


def table_of(result: TrainResult, events: Sequence[RunEvent]) -> str:
    screen = io.StringIO()
    Terminal(file=screen, width=80).print(summary_table(result, events))
    return " ".join(screen.getvalue().split())


def test_the_worker_that_died_is_the_reason_and_not_who_waited_for_it(tmp_path: Path) -> None:
    failures = {
        0: RuntimeError("Connection reset by peer"),
        1: WorkerHealthCheckFailedError("Worker 1 health check failed", ActorDiedError()),
    }
    FailureLog(tmp_path).after_exception(None, failures)
    [(event, _)] = read_events(tmp_path / "metrics.jsonl")
    assert event["reason"] == "worker 1: Worker 1 health check failed"
    settings = TrainingSettings(max_failures=1)
    told = _explained(WorkerGroupError("two failures", failures), settings)
    assert isinstance(told, TrainingError)
    assert str(told).startswith("workers died more than training.max_failures=1 times; the run continues from its last")
    assert "(Worker 1 health check failed)" in str(told)
    lost = ConfigError("node 10.0.0.7 has a GPU for Ray, but torch finds none there")
    assert _explained(ControllerError(RayTaskError("check", "a trace", lost).as_instanceof_cause()), settings) is lost
    defect = WorkerGroupError("a defect", {0: RuntimeError("a defect")})
    assert _explained(defect, TrainingSettings()) is defect


def test_a_server_that_hangs_holds_up_no_line(tmp_path: Path) -> None:
    file, answered = tmp_path / "metrics.jsonl", threading.Event()
    shown: list[RunEvent] = []
    batches: list[Sequence[RunEvent]] = []

    def hang(events: Sequence[RunEvent]) -> None:
        answered.wait()
        batches.append(events)

    with EventFollower(file, hang, shown.append):
        log = EventLog(file)
        step(log, 0)
        while not shown:
            time.sleep(0.05)
        step(log, 1)
        while len(shown) < 2:
            time.sleep(0.05)
        assert not batches
        answered.set()
    assert steps(batches) == [0, 1]


def began(time: float, step: int) -> RunEvent:
    numbers = {"total_steps": 4, "workers": 1, "gpu": True, "clips": 7, "parameters": 1_900_000}
    return {"kind": "start", "time": time, "step": step, **numbers}


def stepped(time: float, number: int) -> RunEvent:
    numbers = {"loss": 2.0 - number, "parts": {}, "clips": 4, "tokens": 500, "seconds": 0.5}
    return {"kind": "step", "time": time, "step": number, **numbers}


RUN: list[RunEvent] = [
    began(0, 0), stepped(1, 0), stepped(2, 1),
    {"kind": "failure", "time": 2.5, "step": 2, "workers": 1, "reason": "killed"},
    began(100, 1), stepped(101, 1), stepped(102, 2), stepped(103, 3),
    {"kind": "validation", "time": 104.0, "step": 3, "losses": {"loss": 2.5}},
    {"kind": "done", "time": 105.0, "step": 4, "model_step": 4, "validation": {"loss": 2.5}},
]  # fmt: skip
"""Of a run whose worker dies after its second step and repeats it."""


def test_a_terminal_has_a_bar_with_everything_else_above_it_and_its_cursor_back() -> None:
    screen, lines = io.StringIO(), list[str]()
    terminal = Terminal(file=screen, force_terminal=True, width=80)
    with LiveConsole(1, lines.append, terminal) as console:
        for event in RUN[:3]:
            console(event)
        console._progress.refresh()
        assert "2/4" in screen.getvalue()
        assert "loss 1.000  1,000 tokens/s  0:01 left" in screen.getvalue()
        for event in RUN[3:]:
            console(event)
    assert [line.split("  ")[1] for line in lines] == [
        "4 steps on 1 GPU worker, 7 clips, 1.9 M trainable",
        "a worker failed after step 2: killed",
        "resumed at step 1 of 4 on 1 GPU worker, 7 clips, 1.9 M trainable",
        "validation after step 4",
        "finished after 4 steps",
    ]
    assert screen.getvalue().count("\x1b[?25l") == screen.getvalue().count("\x1b[?25h") == 1


def test_the_table_at_the_end_counts_what_was_done_once_and_the_time_that_it_took() -> None:
    result = TrainResult("tea", Path("/r/tea/model"), 4, 4, 2.0, -1.0, {"loss": 2.5}, {}, "abc", "dst", 3, 2)
    shown = table_of(result, RUN)
    for words in (
        "steps 4 in 0:08", "tokens 2,000, 1,000/s", "loss 2.000 -> -1.000", "validation loss 2.500",
        "model /r/tea/model", "left out 2 records or events", "checkpoints /r/tea/checkpoints",
        "models:/dst/3", "MLflow run abc",
    ):  # fmt: skip
        assert words in shown


def test_calibration_speaks_where_there_is_no_terminal_and_is_no_training_time() -> None:
    lines: list[str] = []
    event = {"kind": "calibration", "time": 9.0, "step": 4, "message": "calibrating thresholds"}
    LineConsole(10, lines.append)(event)
    assert lines == ["train  calibrating thresholds"]
    assert training_seconds([{"kind": "start", "time": 1.0}, {"kind": "done", "time": 3.0}, event]) == 2.0


def test_a_worker_refuses_an_engine_that_it_cannot_run_before_the_first_step(tmp_path: Path) -> None:
    """Calibration would find out behind the whole training."""
    job = WorkerJob(TOY_MODEL, TrainingSettings(), TOY_CONTEXT, tmp_path, tmp_path, "", {})
    varlen = replace(job, streaming=StreamingSettings(attention="varlen"))
    assert "streaming.attention" in str(device_error(varlen, torch.device("cpu"), 1))
    assert device_error(job, torch.device("cpu"), 1) is None
    alone = CalibrationSettings(enabled=False)
    quiet = replace(varlen, training=varlen.training.model_copy(update={"calibration": alone}))
    assert device_error(quiet, torch.device("cpu"), 1) is None, "nothing streams in this training"
