"""suite=train: this project's training step, the Hugging Face Trainer with peft, and this step without its savings.

All ways fit the same model on the same clips with the same labels in the same batches, on the CPU and each in a
process of its own, so that one way's memory is not another's. Useful tokens are those of the clips; padding is none.
"""

import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import psutil
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from prospect.benchmarks.config import BenchmarkConfig
from prospect.benchmarks.settings import TrainSuite
from prospect.benchmarks.train.peers import train_with_transformers
from prospect.config.schema import Config
from prospect.corpus.plan import plan_corpus
from prospect.data.batches import IGNORE, Batch, Collator
from prospect.data.clips import Clip
from prospect.data.cuts import make_clips
from prospect.data.settings import ClipSettings, LabelSamplingSettings
from prospect.data.sources import load_dialogues, place_all
from prospect.devices import has_gpu
from prospect.dialogue.prompt import ContextSettings
from prospect.dialogue.schema import Dialogue
from prospect.dialogue.sequence import SequenceBuilder
from prospect.dialogue.timeline import num_frames
from prospect.dialogue.vocabulary import Vocabulary
from prospect.errors import ConfigError, ProspectError
from prospect.files import open_filesystem, write_file
from prospect.hashing import derived_seed
from prospect.model.adapters import adapt, build_model, build_tokenizer
from prospect.model.settings import LoraSettings, ModelSettings
from prospect.training.backend import PlainBackend
from prospect.training.loop import MicroBatch, StepBatch, make_sampler, train_step
from prospect.training.settings import TrainingSettings

WAYS = {
    "ours": "packed, logits at labels",
    "ours, checkpointed": "the same, checkpointed",
    "ours, padded": "padded, logits everywhere",
    "transformers": "Hugging Face Trainer",
}


class BenchmarkError(ProspectError):
    """A measured process did not finish."""

    code = "benchmark_failed"


@dataclass(frozen=True)
class TrainTask:
    """Input of every measured way."""

    suite: TrainSuite
    tokenizer: Path
    cache: Path
    clips: list[Clip]
    """`batch_size * num_steps` of them, in the order of the batches."""

    @property
    def useful_tokens(self) -> int:
        return sum(clip.num_tokens or 0 for clip in self.clips)


@dataclass(frozen=True)
class Measurement:
    """One way.

    Attributes:
        seconds, cpu_seconds: of all steps, on the clock and of this process' cores.
        tokens: useful ones.
        computed: tokens that went through the model, padding included.
        peak_bytes: the process' largest resident set while it trained; `start_bytes` before the first step.
        loss: mean of the steps', in the way's own mean over labels.
    """

    seconds: float
    cpu_seconds: float
    tokens: int
    computed: int
    start_bytes: int
    peak_bytes: int
    loss: float


def run(config: BenchmarkConfig) -> None:
    """Measures all ways, prints a table and writes `benchmarks/train.json` below the storage root.

    Raises:
        ConfigError: another suite is configured, or the data hold too few clips.
        CheckpointError: the base model cannot be loaded.
        BenchmarkError: a way ended early, for want of memory most likely.
    """
    suite, console = config.suite, Console(width=110)
    if not isinstance(suite, TrainSuite):
        raise ConfigError("`suite` must be train for this benchmark.", field="suite")
    folder = Path(config.storage.root) / "benchmarks" / "train"
    task = _task(config, suite, folder)
    console.print(histogram(task.clips))
    results = {way: _measured(way, task, folder) for way in WAYS}
    console.print(comparison(results))
    _write(config, {"suite": suite.model_dump(), **_machine(suite), "ways": {w: asdict(r) for w, r in results.items()}})
    if has_gpu():
        from prospect.benchmarks.train.gpu import measure_geometry, render

        console.print(render(measure_geometry(suite)))


def _task(config: Config, suite: TrainSuite, folder: Path) -> TrainTask:
    """Clips of the configured data, of the sample corpus' scripts where nothing is drawn yet."""
    model, cache = ModelSettings(base=suite.base), Path(config.storage.root) / "cache"
    tokenizer = build_tokenizer(model, (), cache)
    tokenizer.save_pretrained(folder / "tokenizer")
    placed, _ = place_all(dialogues := _dialogues(config), _durations(dialogues))
    clips, _ = make_clips(placed, _builder(tokenizer, suite), ClipSettings())
    wanted = suite.batch_size * suite.num_steps
    if len(clips) < wanted:
        raise ConfigError(
            f"`suite.num_steps` x `suite.batch_size` is {wanted}, but the data hold {len(clips)} clips.",
            field="suite.num_steps",
        )
    sampler = make_sampler(clips, TrainingSettings(batch_size=suite.batch_size))
    chosen = [clips[index] for step in range(suite.num_steps + 1) for index in sampler.batch(step)]
    return TrainTask(suite, folder / "tokenizer", cache, chosen[:wanted])


def _dialogues(config: Config) -> list[Dialogue]:
    if config.data.source == "dialogues" and not Path(config.data.path).exists():
        return [video.dialogue for video in plan_corpus(config.corpus)]
    return load_dialogues(config.data).dialogues


def _durations(dialogues: Sequence[Dialogue]) -> Callable[[str], int]:
    frames = {d.video_id: num_frames(d.duration) for d in dialogues if d.duration}
    return lambda video: frames.get(video, 0)


def _measured(way: str, task: TrainTask, folder: Path) -> Measurement:
    """`way` in a fresh process.

    Raises:
        BenchmarkError: it ended early.
    """
    given, result = folder / "task.pickle", folder / "result.json"
    given.write_bytes(pickle.dumps(task))
    status = subprocess.run([sys.executable, "-m", __spec__.name, way, str(given), str(result)]).returncode
    if status:
        raise BenchmarkError(
            f"suite=train: {WAYS[way]} ended with status {status}; where memory ran out (-9), lower suite.batch_size, "
            "suite.micro_batch_size or suite.max_seq_len."
        )
    return Measurement(**json.loads(result.read_text()))


def measure(way: str, task: TrainTask) -> Measurement:
    """Trains all of the task's steps in this process."""
    torch.set_num_threads(task.suite.num_threads or torch.get_num_threads())
    tokenizer = AutoTokenizer.from_pretrained(task.tokenizer)
    settings = ModelSettings(
        base=task.suite.base, lora=LoraSettings(r=task.suite.lora_rank, alpha=2 * task.suite.lora_rank)
    )
    model = adapt(
        build_model(
            settings,
            tokenizer,
            vision_dim=task.suite.vision_dim,
            tokens_per_frame=1,
            fingerprint="random",
            cache=task.cache,
        ),
        settings,
    )
    collate = _Collator(_builder(tokenizer, task.suite), task.suite, packed=way in ("ours", "ours, checkpointed"))
    train = train_with_transformers if way == "transformers" else _train
    training = _settings(task.suite, checkpointed=way == "ours, checkpointed")
    _reset_peak()
    start_bytes, began, cpu = psutil.Process().memory_info().rss, time.perf_counter(), time.process_time()
    loss = train(model, task.clips, collate, training)
    return Measurement(
        seconds=time.perf_counter() - began,
        cpu_seconds=time.process_time() - cpu,
        tokens=task.useful_tokens,
        computed=collate.computed,
        start_bytes=start_bytes,
        peak_bytes=_peak(),
        loss=loss,
    )


def _builder(tokenizer: Any, suite: TrainSuite) -> SequenceBuilder:
    return SequenceBuilder(Vocabulary(tokenizer), ContextSettings(max_seq_len=suite.max_seq_len), tokens_per_frame=1)


def _settings(suite: TrainSuite, checkpointed: bool) -> TrainingSettings:
    return TrainingSettings(
        batch_size=suite.batch_size,
        micro_batch_size=suite.micro_batch_size,
        max_steps=suite.num_steps,
        warmup_steps=0,
        schedule="constant",
        activation_checkpointing=checkpointed,
    )


class _Collator(Collator):
    """Batches with random frames; padded ones are labelled everywhere, with nothing but text counting."""

    def __init__(self, builder: SequenceBuilder, suite: TrainSuite, packed: bool) -> None:
        super().__init__(builder, self._random_frames, LabelSamplingSettings(negative_rate=suite.negative_rate), packed)
        self.dim = suite.vision_dim
        self.computed = 0

    def _random_frames(self, video: str, start: int, stop: int) -> np.ndarray:
        rng = np.random.default_rng(derived_seed(video, start))
        return rng.standard_normal((stop - start, 1, self.dim), np.float32).astype(np.float16)

    def __call__(self, clips: Sequence[Clip], epoch: int = 0) -> Batch:
        batch = super().__call__(clips, epoch)
        self.computed += batch.input_ids.numel()
        return batch if self.packed else label_everywhere(batch)


def label_everywhere(batch: Batch) -> Batch:
    """The project's losses from logits at every position."""
    targets = torch.full((batch.input_ids.numel(),), IGNORE)
    targets[batch.text_positions] = batch.text_targets
    tasks = torch.zeros_like(targets)
    tasks[batch.text_positions] = batch.text_tasks
    return replace(batch, text_positions=torch.arange(len(targets)), text_targets=targets, text_tasks=tasks)


def _train(model: Any, clips: Sequence[Clip], collate: Collator, settings: TrainingSettings) -> float:
    """The mean loss of all steps."""
    backend, size = PlainBackend(model, settings), settings.batch_size
    losses = []
    for step, first in enumerate(range(0, len(clips), size)):
        batch = clips[first : first + size]
        micro = [MicroBatch(collate(part)) for part in _parts(batch, settings.micro_batch_size)]
        losses.append(train_step(backend, StepBatch(micro, settings.learning_rate, step), settings).loss)
    return fmean(losses)


def _parts(clips: Sequence[Clip], size: int) -> Iterator[Sequence[Clip]]:
    return (clips[first : first + size] for first in range(0, len(clips), size))


def _reset_peak() -> None:
    """Reset the peak resident set. Only Linux can: elsewhere the peak includes building the model."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    import resource

    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def histogram(clips: Sequence[Clip]) -> Table:
    """Histogram of clip lengths."""
    lengths = np.array([clip.num_tokens for clip in clips])
    edges = np.unique(np.linspace(lengths.min(), lengths.max() + 1, 9).astype(int))
    counts, _ = np.histogram(lengths, edges)
    table = Table(
        title=f"{len(lengths)} clips, {lengths.sum():,} tokens, mean {lengths.mean():.0f}",
        box=box.SIMPLE_HEAD,
        show_edge=False,
    )
    table.add_column("tokens", justify="right")
    table.add_column("clips", justify="right")
    table.add_column("")
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        table.add_row(f"{low} to {high - 1}", str(count), "#" * round(40 * count / counts.max()))
    return table


def comparison(results: dict[str, Measurement]) -> Table:
    """One row a way; ratios are against transformers."""
    peer = results["transformers"]
    table = Table(title="Training step; x is against the Hugging Face Trainer", box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("way")
    for name in ("tokens/s", "x", "tokens/CPU s", "x", "padding", "peak, GiB", "x", "over model, GiB", "loss"):
        table.add_column(name, justify="right")
    for way, each in results.items():
        speed, rival = each.tokens / each.seconds, peer.tokens / peer.seconds
        cpu, cpu_rival = each.tokens / each.cpu_seconds, peer.tokens / peer.cpu_seconds
        table.add_row(
            WAYS[way],
            f"{speed:.0f}",
            f"{speed / rival:.2f}",
            f"{cpu:.0f}",
            f"{cpu / cpu_rival:.2f}",
            f"{1 - each.tokens / each.computed:.0%}",
            f"{each.peak_bytes / 2**30:.2f}",
            f"{each.peak_bytes / peer.peak_bytes:.2f}",
            f"{(each.peak_bytes - each.start_bytes) / 2**30:.2f}",
            f"{each.loss:.2f}",
        )
    return table


def _machine(suite: TrainSuite) -> dict[str, Any]:
    return {
        "cores": psutil.cpu_count(),
        "threads": suite.num_threads or torch.get_num_threads(),
        "precision": "float32",
    }


def _write(config: Config, values: dict[str, Any]) -> None:
    filesystem, root = open_filesystem(config.storage.root)
    write_file(filesystem, f"{root}/benchmarks/train.json", json.dumps(values, indent=2).encode())


def main(way: str, given: str, result: str) -> None:
    """Entry of the process that measures one way."""
    disable_progress_bar()
    measured = measure(way, pickle.loads(Path(given).read_bytes()))
    Path(result).write_text(json.dumps(asdict(measured)))


if __name__ == "__main__":
    main(*sys.argv[1:])
