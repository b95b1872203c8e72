"""Scores a model: held-out videos streamed with Ray Data, beside baselines that do not watch; the better one serves."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import ray
import ray.data
import torch
from pydantic import TypeAdapter

from prospect.cluster.job import connect
from prospect.data.embeddings import EmbeddingStore
from prospect.dialogue.prompt import ContextSettings
from prospect.dialogue.schema import Dialogue
from prospect.dialogue.timeline import place
from prospect.errors import DataError
from prospect.evaluation.baselines import Periodic, TimePrior, oracle, right_time_wrong_step, silence
from prospect.evaluation.intervals import Interval
from prospect.evaluation.metrics import Scores, evaluate, paired_interval
from prospect.evaluation.records import VideoDecisions
from prospect.evaluation.similarity import SentenceSimilarity
from prospect.evaluation.stream import Placed, View, stream_dialogues, view_of
from prospect.model.checkpoint import load_model
from prospect.streaming.engine import StreamingEngine, StreamingSettings
from prospect.streaming.outputs import Decision
from prospect.tracking import Tracking
from prospect.training.prepare import Records, read_records

if TYPE_CHECKING:
    from prospect.config import Config

Report = Callable[[str], None]

VIEWS: tuple[View, ...] = ("watched", "shuffled", "blank")
MODEL = "trained model"
RIVALS = ("silence", "time prior", "shuffled frames", "blank frames")
"""What a model that watches must beat in joint goal accuracy; silence stays in the initial state."""
SESSIONS_PER_GROUP = 8
"""Dialogues that one engine streams together; a group is the unit that Ray Data hands out."""

_DECISIONS = TypeAdapter(list[Decision])


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found, by system; `MODEL` is the trained one."""

    scores: dict[str, Scores]
    advantage: dict[str, Interval | None]
    """Joint goal accuracy of the model less that of each rival on the same videos."""
    model: str
    file: Path
    """All of it as JSON."""
    manifest: dict[str, Any]
    """What travels with the model: its run, its encoder."""
    champion: bool = False
    """Whether it serves from now on."""


def evaluate_model(config: "Config", report: Report = print) -> EvaluationResult:
    """Streams the split's dialogues through the model and scores them beside the baselines.

    A registered model is promoted to `champion` where it is the first or better than the one that serves.

    Args:
        config: sections storage, data, vision, model, context, streaming, evaluation and tracking.
        report: takes one line of progress at a time.

    Raises:
        DataError: nothing to score.
        CheckpointError: no such model.
        UntrainedHeadError: its heads were never trained.
        FingerprintError: the embeddings were made by another encoder than the model's.
    """
    settings, root = config.evaluation, Path(config.storage.root)
    tracking = Tracking(config.tracking, root)
    model = settings.model or f"models:/{config.model.name}@candidate"
    folder = tracking.resolve(model)
    loaded = load_model(folder, cache=root / "cache")
    store = EmbeddingStore(str(root / "embeddings"))
    store.require(loaded.fingerprint)
    records = read_records(config.data, root / "labels" / "dialogues.jsonl", store)
    placed = records.split(settings.split)
    if not placed:
        raise DataError(
            f"evaluation.split={settings.split!r} holds no dialogue; hold some out, for instance with data.holdout=1",
            field="evaluation.split",
        )
    report(f"eval   {model}: streaming {len(placed)} dialogues, {len(VIEWS)} views each")
    systems = _streamed(folder, root / "cache", placed, store, config.streaming, report) | _baselines(records, placed)
    encoder = SentenceSimilarity(settings.similarity)
    scores = {name: evaluate(videos, settings, encoder) for name, videos in systems.items()}
    rivals = {name: scores[name] for name in RIVALS}
    advantage = {name: paired_interval(scores[MODEL], rival, settings=settings) for name, rival in rivals.items()}
    result = EvaluationResult(
        scores, advantage, model, root / "evaluations" / f"{loaded.manifest['run_name']}.json", loaded.manifest
    )
    _write(result)
    champion = _record(tracking, result, report)
    report(f"eval   written to {result.file}")
    return replace(result, champion=champion)


class _Streamer:
    """One engine in a Ray Data actor."""

    def __init__(self, folder: Path, cache: Path, store: str, streaming: StreamingSettings) -> None:
        torch.set_num_threads(1)
        self._loaded = load_model(folder, cache=cache)
        self._store = EmbeddingStore(store)
        self._context = ContextSettings.model_validate(self._loaded.manifest["context"])
        self._settings = streaming.model_copy(update={"max_sessions": SESSIONS_PER_GROUP, "max_waiting_frames": 10**9})

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        engine = StreamingEngine(self._loaded, self._context, self._settings)
        blank = self._loaded.model.mm_projector.mean_frame()
        dialogues = [Dialogue.model_validate_json(text) for text in json.loads(row["dialogues"])]
        placed = [(dialogue, place(dialogue, self._store.num_frames(dialogue.video_id))) for dialogue in dialogues]

        def read(dialogue: Dialogue, start: int, stop: int) -> np.ndarray:
            frames = self._store.read(dialogue.video_id, start, stop)
            return view_of(frames, row["view"], blank, dialogue.dialogue_id)

        streamed = stream_dialogues(engine, placed, read)
        decisions = [_DECISIONS.dump_json(list(one.decisions)).decode() for one in streamed]
        return {"view": row["view"], "group": row["group"], "decisions": json.dumps(decisions)}


def _streamed(
    folder: Path,
    cache: Path,
    placed: Sequence[Placed],
    store: EmbeddingStore,
    streaming: StreamingSettings,
    report: Report,
) -> dict[str, list[VideoDecisions]]:
    groups = [placed[start : start + SESSIONS_PER_GROUP] for start in range(0, len(placed), SESSIONS_PER_GROUP)]
    rows = [
        {"view": view, "group": index, "dialogues": json.dumps([dialogue.model_dump_json() for dialogue, _ in group])}
        for view in VIEWS
        for index, group in enumerate(groups)
    ]
    connect()
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    actors = max(1, min(len(rows), gpus or int(resources.get("CPU", 1))))
    streamed = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        cast(Any, _Streamer),  # Ray takes a class for a stateful function; its annotation does not say so
        fn_constructor_args=(folder, cache, str(store.root), streaming),
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
        num_gpus=1 if gpus else 0,
    )
    systems: dict[str, dict[int, list[VideoDecisions]]] = {view: {} for view in VIEWS}
    for done, row in enumerate(streamed.iter_rows(), 1):
        decided = [_DECISIONS.validate_json(text) for text in json.loads(row["decisions"])]
        pairs = zip(groups[row["group"]], decided, strict=True)
        systems[row["view"]][row["group"]] = [VideoDecisions(d, t, found) for (d, t), found in pairs]
        report(f"eval   {done}/{len(rows)} groups of up to {SESSIONS_PER_GROUP} sessions streamed")
    names = {"watched": MODEL, "shuffled": "shuffled frames", "blank": "blank frames"}
    return {names[view]: [one for index in sorted(found) for one in found[index]] for view, found in systems.items()}


def _baselines(records: Records, placed: Sequence[Placed]) -> dict[str, list[VideoDecisions]]:
    training = [timeline for _, timeline in records.split("train")]
    systems: dict[str, Callable[..., VideoDecisions]] = {
        "silence": silence,
        "periodic": Periodic.fit(training),
        "time prior": TimePrior.fit(training),
        "right time, wrong step": right_time_wrong_step,
        "oracle": oracle,
    }
    return {name: [system(dialogue, timeline) for dialogue, timeline in placed] for name, system in systems.items()}


def _write(result: EvaluationResult) -> None:
    result.file.parent.mkdir(parents=True, exist_ok=True)
    partial = result.file.with_suffix(".partial")
    values = {
        "model": result.model,
        "manifest": result.manifest,
        "scores": {name: scores.to_dict() for name, scores in result.scores.items()},
        "advantage": {name: interval and asdict(interval) for name, interval in result.advantage.items()},
    }
    partial.write_text(json.dumps(values, indent=2))
    partial.rename(result.file)


def _record(tracking: Tracking, result: EvaluationResult, report: Report) -> bool:
    """Metrics and the file go to the training run; a registered model may become the champion."""
    scores = result.scores[MODEL].overall
    run = tracking.find_run(result.manifest.get("mlflow_run", ""))
    if run is not None:
        run.log_metrics({f"eval/{name}": value for name, value in result.scores[MODEL].logged().items()})
        run.log_file(result.file, "evaluation")
    if not result.model.startswith("models:/"):
        return False
    name, version = tracking.version_of(result.model)
    metric = "joint_goal_accuracy" if scores["joint_goal_accuracy"] is not None else "turn_f1"
    champion = tracking.promote(name, version, f"eval.{metric}", float(scores[metric] or 0.0))
    verdict = "is the champion now" if champion else "is not better than the champion"
    report(f"eval   models:/{name}/{version} {verdict} ({metric} {scores[metric] or 0.0:.3f})")
    return champion
