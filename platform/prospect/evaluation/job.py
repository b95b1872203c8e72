"""Scores a model: held-out videos streamed with Ray Data, beside baselines that do not watch; the better one serves."""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import ray
import ray.data
import torch
from pydantic import TypeAdapter

import prospect
from prospect.cluster.job import connect
from prospect.data.embeddings import EmbeddingStore
from prospect.data.prepare import Records, read_records
from prospect.dialogue.prompt import ContextSettings
from prospect.dialogue.schema import Dialogue
from prospect.dialogue.timeline import place
from prospect.errors import DataError, ProspectError
from prospect.evaluation.baselines import Periodic, TimePrior, oracle, right_time_wrong_step, silence
from prospect.evaluation.calibration import shown
from prospect.evaluation.intervals import Interval
from prospect.evaluation.metrics import Scores, evaluate, paired_interval
from prospect.evaluation.records import VideoDecisions, scored_frames
from prospect.evaluation.stream import Placed, View, stream_dialogues, view_of
from prospect.files import write_json, write_text
from prospect.lineage import fingerprint, hash_file
from prospect.model.checkpoint import LoadedModel, load_model
from prospect.similarity import SentenceSimilarity
from prospect.streaming.engine import StreamingEngine, StreamingSettings
from prospect.streaming.outputs import Decision
from prospect.tracking import Tracking

if TYPE_CHECKING:
    from prospect.config import Config

Report = Callable[[str], None]

MODEL = "trained model"
VIEWS: dict[View, str] = {"watched": MODEL, "shuffled": "shuffled frames", "blank": "blank frames"}
"""What the model is shown, and the name of the system that it then is."""
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
    fast_share: float
    """Of the frames that the model watched, those decided without `lm_head`."""
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
    placed = records.scored(settings.split)
    if not placed:
        raise DataError(
            f"evaluation.split={settings.split!r} holds no dialogue; hold some out, for instance with data.holdout=1",
            field="evaluation.split",
        )
    report(f"eval   {_thresholds(loaded, config.streaming, {dialogue.dataset for dialogue, _ in placed})}")
    report(f"eval   {model}: streaming {len(placed)} dialogues, {len(VIEWS)} views each")
    context = config.context.over(loaded.manifest["context"])
    decided = streamed(folder, root / "cache", placed, store, context, config.streaming, report)
    systems = decided | _baselines(records, placed)
    encoder = SentenceSimilarity(settings.similarity)
    scores = {name: evaluate(videos, settings, encoder) for name, videos in systems.items()}
    rivals = {name: scores[name] for name in RIVALS}
    advantage = {name: paired_interval(scores[MODEL], rival, settings=settings) for name, rival in rivals.items()}
    fast_share = _fast_share(decided[MODEL])
    report(f"eval   {fast_share:.1%} of the watched frames took the fast path, without lm_head")
    file = root / "evaluations" / f"{loaded.manifest['run_name']}.json"
    result = EvaluationResult(scores, advantage, model, file, fast_share, loaded.manifest)
    _write(result)
    champion = _record(tracking, result, report)
    report(f"eval   written to {result.file}")
    return replace(result, champion=champion)


def _fast_share(videos: Sequence[VideoDecisions]) -> float:
    fast = [decision.fast for video in videos for decision in video.decisions]
    return sum(fast) / len(fast) if fast else 1.0


def _thresholds(loaded: LoadedModel, streaming: StreamingSettings, datasets: set[str]) -> str:
    """Which thresholds hold, in a line."""
    calibrated = loaded.model.config.thresholds
    in_force = {dataset: streaming.thresholds(calibrated, dataset) for dataset in datasets}
    if calibrated and streaming.calibrated:
        return f"thresholds calibrated in training: {shown(in_force)}"
    why = "by streaming.calibrated=false" if calibrated else "the model brings no calibrated ones"
    return f"thresholds as configured, {why}: {shown(in_force)}"


class _Streamer:
    """One engine in a Ray Data actor."""

    def __init__(
        self, folder: Path, cache: Path, store: str, context: ContextSettings, streaming: StreamingSettings
    ) -> None:
        torch.set_num_threads(1)
        self._loaded = load_model(folder, cache=cache, device="auto")
        self._store = EmbeddingStore(store)
        self._context = context
        self._settings = streaming.model_copy(update={"max_sessions": SESSIONS_PER_GROUP, "max_waiting_frames": 10**9})

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        engine = StreamingEngine(self._loaded, self._context, self._settings)
        blank = self._loaded.model.mm_projector.mean_frame()
        dialogues = [Dialogue.model_validate_json(text) for text in json.loads(row["dialogues"])]
        placed = [(dialogue, place(dialogue, self._store.num_frames(dialogue.video_id))) for dialogue in dialogues]

        def read(dialogue: Dialogue, start: int, stop: int) -> np.ndarray:
            frames = self._store.read(dialogue.video_id, start, stop)
            return view_of(frames, row["view"], blank, dialogue.dialogue_id)

        try:
            streamed = stream_dialogues(engine, placed, read)
        except ProspectError as error:  # as a value: what an actor raises arrives as a stack trace
            return {"key": row["key"], "decisions": "", "error": str(error)}
        decisions = [_DECISIONS.dump_json(list(one.decisions)).decode() for one in streamed]
        return {"key": row["key"], "decisions": json.dumps(decisions), "error": ""}


def streamed(
    folder: Path,
    cache: Path,
    placed: Sequence[Placed],
    store: EmbeddingStore,
    context: ContextSettings,
    streaming: StreamingSettings,
    report: Report,
    views: Sequence[View] = tuple(VIEWS),
) -> dict[str, list[VideoDecisions]]:
    """Decisions by the system's name, one for each view that the model in `folder` is shown.

    What the same model and code streamed before with the same settings is not streamed again: `cache` has it.

    Raises:
        DataError: a dialogue cannot be streamed.
    """
    settings = [each.model_dump(mode="json") for each in (context, streaming)]
    same = [_weights_hash(folder), _code_hash(), *settings, store.fingerprint]
    groups = [
        _Group.of(view, placed[start : start + SESSIONS_PER_GROUP], same, store)
        for view in views
        for start in range(0, len(placed), SESSIONS_PER_GROUP)
    ]
    finished = _Finished(cache / "decisions", len(groups), report)
    missing = [group.row for group in groups if not finished.has(group.row["key"])]
    if missing:
        for row in _stream_rows(missing, folder, cache, store, context, streaming):
            if row["error"]:
                raise DataError(f"evaluation: a held-out dialogue cannot be streamed: {row['error']}")
            finished.add(row["key"], row["decisions"])
    systems: dict[str, list[VideoDecisions]] = {VIEWS[view]: [] for view in views}
    for group in groups:
        found = [_DECISIONS.validate_json(text) for text in finished.get(group.row["key"])]
        systems[VIEWS[group.view]] += [
            VideoDecisions(dialogue, timeline, decisions, scored_frames(dialogue, timeline).start)
            for (dialogue, timeline), decisions in zip(group.placed, found, strict=True)
        ]
    return systems


@dataclass(frozen=True)
class _Group:
    """Dialogues that one engine streams together, and the row that carries them through Ray Data."""

    view: View
    placed: Sequence[Placed]
    row: dict[str, str]

    @classmethod
    def of(cls, view: View, placed: Sequence[Placed], same: list[Any], store: EmbeddingStore) -> "_Group":
        row = {"view": view, "dialogues": json.dumps([dialogue.model_dump_json() for dialogue, _ in placed])}
        sources = [store.stored(dialogue.video_id).source_hash for dialogue, _ in placed]
        return cls(view, placed, {**row, "key": fingerprint([*same, row, sources])})


class _Finished:
    """Decisions on disk, a file a group, so that an evaluation that was killed goes on where it was."""

    def __init__(self, folder: Path, total: int, report: Report) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._total, self._report, self._done = folder, total, report, 0

    def has(self, key: str) -> bool:
        found = (self._folder / f"{key}.json").is_file()
        self._done += found
        return found

    def add(self, key: str, decisions: str) -> None:
        write_text(self._folder / f"{key}.json", decisions)
        self._done += 1
        self._report(f"eval   {self._done}/{self._total} groups of up to {SESSIONS_PER_GROUP} sessions streamed")

    def get(self, key: str) -> list[str]:
        return json.loads((self._folder / f"{key}.json").read_text())


def _weights_hash(folder: Path) -> str:
    weights = [hash_file(file) for file in sorted(folder.glob("*.safetensors"))]
    return fingerprint([*weights, (folder / "config.json").read_text()])


@functools.cache
def _code_hash() -> str:
    """Of what decides, so that another version's decisions are not taken for this one's."""
    package = Path(prospect.__file__).parent
    files = [file for part in ("dialogue", "model", "streaming") for file in sorted((package / part).glob("*.py"))]
    return fingerprint([hash_file(file) for file in [*files, package / "evaluation" / "stream.py"]])


def _stream_rows(
    rows: list[dict[str, str]],
    folder: Path,
    cache: Path,
    store: EmbeddingStore,
    context: ContextSettings,
    streaming: StreamingSettings,
) -> Iterator[dict[str, Any]]:
    connect()
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    actors = max(1, min(len(rows), gpus or int(resources.get("CPU", 1))))
    streamed = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        cast(Any, _Streamer),  # Ray takes a class for a stateful function; its annotation does not say so
        fn_constructor_args=(folder, cache, str(store.root), context, streaming),
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
        num_gpus=1 if gpus else 0,
    )
    yield from streamed.iter_rows()


def _baselines(records: Records, placed: Sequence[Placed]) -> dict[str, list[VideoDecisions]]:
    training = [timeline for _, timeline in records.scored("train")]
    systems: dict[str, Callable[..., VideoDecisions]] = {
        "silence": silence,
        "periodic": Periodic.fit(training),
        "time prior": TimePrior.fit(training),
        "right time, wrong step": right_time_wrong_step,
        "oracle": oracle,
    }
    return {name: [system(dialogue, timeline) for dialogue, timeline in placed] for name, system in systems.items()}


def _write(result: EvaluationResult) -> None:
    values = {
        "model": result.model,
        "fast_share": result.fast_share,
        "manifest": result.manifest,
        "scores": {name: scores.to_dict() for name, scores in result.scores.items()},
        "advantage": {name: interval and asdict(interval) for name, interval in result.advantage.items()},
    }
    write_json(result.file, values)


def _record(tracking: Tracking, result: EvaluationResult, report: Report) -> bool:
    """Metrics and the file go to the training run; a registered model may become the champion."""
    scores = result.scores[MODEL].overall
    run = tracking.find_run(result.manifest.get("mlflow_run", ""))
    if run is not None:
        logged = {**result.scores[MODEL].logged(), "fast_share": result.fast_share}
        run.log_metrics({f"eval/{name}": value for name, value in logged.items()})
        run.log_file(result.file, "evaluation")
    if not result.model.startswith("models:/"):
        return False
    name, version = tracking.version_of(result.model)
    metric = "joint_goal_accuracy" if scores["joint_goal_accuracy"] is not None else "turn_f1"
    champion = tracking.promote(name, version, f"eval.{metric}", float(scores[metric] or 0.0))
    verdict = "is the champion now" if champion else "is not better than the champion"
    report(f"eval   models:/{name}/{version} {verdict} ({metric} {scores[metric] or 0.0:.3f})")
    return champion
