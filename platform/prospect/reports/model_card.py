"""A model's card, README.md in its folder: its data, base, encoder and scores, and how to serve it.

Training writes it; each evaluation adds a section, and replaces its own. The hash of a model leaves it out.
"""

import html
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from prospect.evaluation.lineage import Lineage, counted
from prospect.evaluation.metrics import SliceScores
from prospect.evaluation.thresholds import shown
from prospect.files import write_text
from prospect.model.saved import SavedModel, read_saved
from prospect.reports.evaluation.words import number, words

CARD = "README.md"

_VALIDATED = ("speak_f1", "update_f1", "state_accuracy", "stream_turn_f1", "stream_joint_goal_accuracy")
"""Scores of the last validation that the card names."""

_EVALUATION = "## Evaluation"
_NONE_YET = "Not evaluated yet: `python jobs/eval.py evaluation.model=FOLDER` adds its scores here."


def write_card(folder: Path, data: Mapping[str, Any] | None, licence: str, about: str = "") -> str:
    """Write the card of a finished model; returns its text.

    Args:
        folder: of the model.
        data: counts of the training data, as `dataset_manifest` gives them; None: unknown.
        licence: of the base.
        about: one sentence on data, steps and scores.

    Raises:
        CheckpointError: the folder holds no model.
    """
    text = "\n".join(_lines(read_saved(folder), data, licence, about))
    write_text(folder / CARD, text)
    return text


def add_evaluation(folder: Path, lineage: Lineage, scores: SliceScores) -> str:
    """Add the scores of an evaluation to the card of a model, or replace those of the same one.

    Returns:
        The card's text. A model of an earlier version, which has none, gets one without its training data.

    Raises:
        OSError: the folder cannot be written.
        CheckpointError: it holds no model.
    """
    file = folder / CARD
    text = file.read_text() if file.is_file() else write_card(folder, None, "unknown")
    begin, end = (f"<!-- {word} {lineage.key} -->" for word in ("evaluation", "end of"))
    section = "\n".join([begin, *_scores(lineage, scores), end])
    known = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if known.search(text):
        text = known.sub(lambda _: section, text)
    else:
        if _EVALUATION not in text:
            text = f"{text.rstrip()}\n\n{_EVALUATION}\n"
        text = f"{text.replace(_NONE_YET, '').rstrip()}\n\n{section}\n"
    write_text(file, text)
    return text


def without_head(card: str) -> str:
    """The card without its YAML head, for pages that show Markdown only."""
    return card.split("---", 2)[2].strip() if card.startswith("---") else card


def _lines(saved: SavedModel, data: Mapping[str, Any] | None, licence: str, about: str) -> Iterator[str]:
    manifest = saved.manifest
    model, training = manifest.get("model", {}), manifest.get("training", {})
    name = str(manifest.get("run_name", saved.folder.parent.name))
    base = str(model.get("base", "unknown"))
    yield from (
        "---",
        "library_name: prospect",
        f"license: {'other' if ' ' in licence else _plain(licence)}",
        "---",
        "",
    )
    yield from (f"# {_plain(name)}", "")
    yield from (_plain(about), "") if about else ()
    yield "A streaming assistant: twice a second it sees a frame, decides whether to speak, and tracks the task."
    yield from ("", "## Data", "")
    yield from _data(data, manifest)
    yield from ("", "## Model", "")
    yield from _table(
        {
            "base": base,
            "licence of the base": licence,
            "class": ", ".join(saved.config.get("architectures") or []),
            "adaptation": model.get("adaptation", "unknown"),
            "parameters in the folder": f"{_parameters(saved.folder):,}",
            "decisions": saved.config.get("decision_backend", "heads"),
            "optimizer steps": _steps(training),
            "thresholds": _thresholds(saved.thresholds),
            "seed": manifest.get("seed", "unknown"),
            "MLflow run": manifest.get("mlflow_run", "unknown"),
        }
    )
    yield from ("", "## Frames", "")
    vision = manifest.get("vision", {})
    yield f"The model takes embeddings of its own encoder only, fingerprint `{saved.fingerprint}`."
    yield ""
    yield from _table({key: vision[key] for key in ("model", "weights", "image_size", "crop") if key in vision})
    validation = training.get("validation", {})
    if validated := {words(key): number(validation[key]) for key in _VALIDATED if key in validation}:
        yield from ("", "## Validation in training", "")
        yield from _table(validated)
    yield from ("", "## Use", "", "```sh", "serve run serve.app:app serving.model=FOLDER   # this folder", "```", "")
    yield "In Python: `prospect.model.checkpoint.load_model(FOLDER)`; for tables of frames `mlflow.pyfunc.load_model`."
    yield from ("", _EVALUATION, "", _NONE_YET, "")


def _data(data: Mapping[str, Any] | None, manifest: Mapping[str, Any]) -> Iterator[str]:
    trained_on: Sequence[str] = manifest.get("trained_on", ())
    if data is None:
        counts = f"{counted(len(trained_on), 'video')} of training and validation" if trained_on else "unknown"
        yield f"Counts by split: {counts}; the licence of the data is its owner's to state."
        return
    columns = ("videos", "dialogues", "frames", "clips")
    yield f"| data set | split | {' | '.join(columns)} |"
    yield f"|---|---|{'--:|' * len(columns)}"
    for dataset, splits in data["datasets"].items():
        for split, found in splits.items():
            yield f"| {_plain(dataset)} | {split} | {' | '.join(f'{found.get(key, 0):,}' for key in columns)} |"
    yield ""
    yield f"Records `{data['records']}`, embeddings `{data['embeddings']}`; left out: {data['quarantined']:,}."
    yield "The licence of the data is its owner's to state."


def _scores(lineage: Lineage, scores: SliceScores) -> Iterator[str]:
    yield f"### {_plain(lineage.split)}, {lineage.key}"
    yield ""
    yield f"{counted(lineage.dialogues, 'dialogue')} of {lineage.count}; records `{lineage.records}`{_rules(lineage)}."
    yield from (f"**ATTENTION: {_plain(mark)}.**" for mark in lineage.marks())
    yield from ("", "| metric | value | interval |", "|---|--:|---|")
    for name, value in scores.metrics.items():
        if value is not None:
            interval = scores.intervals.get(name)
            told = f"{number(interval.low)} to {number(interval.high)}" if interval else ""
            yield f"| {words(name)} | {number(value)} | {told} |"


def _rules(lineage: Lineage) -> str:
    """The rules by which most scores differ, as far as they are known."""
    context, matching = lineage.rules.get("context", {}), lineage.rules.get("evaluation", {}).get("matching", {})
    known = (
        (context.get("strategy"), "context {}"),
        (context.get("max_seq_len"), "of {} tokens"),
        (matching.get("mode"), "matching {}"),
    )
    return "".join(f", {_plain(told.format(value))}" for value, told in known if value)


def _table(values: Mapping[str, object]) -> Iterator[str]:
    yield from ("| | |", "|---|---|")
    yield from (f"| {key} | {_plain(str(value))} |" for key, value in values.items() if value not in ("", None))


def _plain(text: str) -> str:
    """Text as one cell of a Markdown table: no markup, no line break."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|").replace("`", "&#96;")


def _steps(training: Mapping[str, Any]) -> str:
    if "step" not in training:
        return "unknown"
    return f"{training['step']:,}, weights of step {training.get('model_step', training['step']):,}"


def _thresholds(thresholds: Mapping[str, Mapping[str, float]] | None) -> str:
    return shown(thresholds) if thresholds else "as configured"


def _parameters(folder: Path) -> int:
    """Numbers in the folder's weight files; reads their headers only."""
    return sum(map(_file_parameters, folder.glob("*.safetensors")))


def _file_parameters(file: Path) -> int:
    with safe_open(file, framework="np") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
