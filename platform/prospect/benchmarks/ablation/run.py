"""One run of suite=ablation in a process of its own: train, stream the held-out videos, score.

The suite sends the run over standard input and keeps that open. When the suite dies, the input ends, and this process
ends with it.
"""

import os
import pickle
import sys
import threading
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from prospect.benchmarks.ablation.variants import AblationRun
from prospect.cluster.runtime import connect, disconnect
from prospect.cluster.stream_views import MODEL, stream_views
from prospect.cluster.train import train
from prospect.data.embeddings import EmbeddingStore
from prospect.data.prepare import read_records
from prospect.errors import DataError, ProspectError
from prospect.evaluation.decision_cache import StreamedModel
from prospect.evaluation.metrics import evaluate
from prospect.files import write_json
from prospect.similarity import SentenceSimilarity
from prospect.training.events import read_events, training_seconds


def measure(run: AblationRun) -> dict[str, Any]:
    """Train as jobs/train.py and stream as jobs/eval.py; finished parts are read.

    Returns:
        `scores` by pass, each with the `metrics` over all videos and the sums of each of `videos`, and what the
        training took and found.

    Raises:
        ProspectError: as the two jobs do.
    """
    config = run.config
    root = Path(config.storage.root)
    trained = train(config)
    store = EmbeddingStore(str(root / "embeddings"))
    placed = read_records(config.data, root / "labels" / "dialogues.jsonl", store).split(config.evaluation.split)
    if not placed:
        field = "suite.corpus.num_test"
        raise DataError(f"`{field}` (0) must be at least 1: the score needs held-out videos", field=field)
    encoder = SentenceSimilarity(config.evaluation.similarity)
    scores = {}
    for name, settings in run.passes.items():
        model = StreamedModel(trained.model, root / "cache", str(store.root), config.context, settings)
        systems = stream_views(model, placed, config.cluster, print, views=["watched"])
        videos = systems[MODEL]
        found = evaluate(videos, config.evaluation, encoder)
        tallies = {video: tally.to_dict() for video, tally in found.videos.items()}
        scores[name] = {"metrics": found.overall.metrics, "videos": tallies}
    events = read_events(root / "runs" / trained.run_name / "metrics.jsonl")
    return {
        "configuration": run.name,
        "seed": run.seed,
        "run_name": trained.run_name,
        "model": str(trained.model),
        "minutes": training_seconds(event for event, _ in events) / 60,
        "loss": trained.last_loss,
        "trained_steps": trained.trained_steps,
        "scores": scores,
    }


def _end_with_the_suite() -> None:
    """End this process, and Ray's with it, once standard input ends; `sys.stdin` has a lock that blocks the exit."""
    while os.read(0, 1):
        pass
    os._exit(1)


def main() -> int:
    """Entry of the process; exit statuses as of `config.cli.run_job`."""
    run: AblationRun = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_the_suite, daemon=True).start()
    disable_progress_bar()
    connect(num_cpus=1)  # the suite's processes share the machine
    try:
        scored = measure(run)
        run.result.parent.mkdir(parents=True, exist_ok=True)
        write_json(run.result, scored)
    except ProspectError as error:
        print(f"error: {error}", flush=True)
        return 2
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        return 130
    finally:
        disconnect()
    return 0


if __name__ == "__main__":
    sys.exit(main())
