"""One validated `Config` out of configs/ and key=value overrides. For jobs/ and serve/ only.

A file in configs/ names the sections that a job uses and the option each starts from; the classes hold the
defaults and the checks. Every mistake is a `ConfigError` of one sentence.
"""

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import pyarrow
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from prospect.benchmarks.settings import Suite
from prospect.corpus.settings import CorpusSettings
from prospect.data.labels.settings import LabelSettings
from prospect.data.sources import DataSettings
from prospect.dialogue.prompt import ContextSettings
from prospect.errors import ConfigError, DataError, ProspectError
from prospect.evaluation.settings import EvaluationSettings
from prospect.files import open_filesystem, write_file
from prospect.hashing import fingerprint
from prospect.messages import describe, first_line, shown, unknown
from prospect.model.settings import ModelSettings
from prospect.serving.settings import ServingSettings
from prospect.settings import Settings
from prospect.streaming.settings import StreamingSettings
from prospect.tracking.settings import TrackingSettings
from prospect.training.checks import card_bytes, check_settings
from prospect.training.settings import TrainingSettings
from prospect.vision.settings import EmbeddingSettings, VisionSettings

RUNTIME_ENV = "runtime_env.yaml"
"""The one file of configs/ that is Ray's and no job's."""


class StorageSettings(Settings):
    """Where everything that is written lies."""

    root: str = Field(default="outputs", validate_default=True)
    """Folder or URL (anything pyarrow opens) of all outputs. A relative path counts from the current folder
    and is refused inside a cluster job, where every node would take it for a folder of its own."""

    @field_validator("root")
    @classmethod
    def _absolute(cls, root: str) -> str:
        path = Path(root).expanduser()
        if "://" in root or path.is_absolute():
            return root if "://" in root else str(path)
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:  # Ray sets it for the driver of a submitted job
            raise ConfigError(
                f"`storage.root` is the relative path `{root}`, which no two nodes of a cluster share: give an absolute"
                " path or a URL, such as storage.root=/shared/outputs, or set PROSPECT_STORAGE_ROOT where Ray starts.",
                field="storage.root",
            )
        return str(path.resolve())


class Config(Settings):
    """All sections. A job reads those that its file in configs/ names; the others keep their defaults."""

    storage: StorageSettings = Field(default_factory=StorageSettings)
    corpus: CorpusSettings = Field(default_factory=CorpusSettings)
    data: DataSettings = Field(default_factory=lambda: DataSettings(source="dialogues", path="outputs/corpus"))
    labels: LabelSettings = Field(default_factory=LabelSettings)
    vision: VisionSettings = Field(default_factory=VisionSettings)
    embedding: EmbeddingSettings = Field(default_factory=EmbeddingSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    context: ContextSettings = Field(default_factory=ContextSettings)
    streaming: StreamingSettings = Field(default_factory=StreamingSettings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    tracking: TrackingSettings = Field(default_factory=TrackingSettings)
    serving: ServingSettings = Field(default_factory=ServingSettings)
    suite: Suite | None = None
    preview: str | None = None
    """A video id: writes one HTML page on this video's labels, and labels nothing."""
    plan: bool = False
    """Print what the run would train and how much memory it would take, and end: nothing is loaded or trained."""
    card: str | None = Field(default=None, coerce_numbers_to_str=True)
    """The device that plan=true judges by, such as 24GB or 80GB. Default: this machine's GPU, and 24GB without one."""

    @model_validator(mode="after")
    def _together(self) -> Self:
        check_settings(self.model, self.training)
        if self.card is not None:
            card_bytes(self.card)
        return self


def load(job: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a job.

    Args:
        job: name of a file in configs/, such as `train`.
        overrides: `section=option` and `section.key=value`, in Hydra's value grammar.

    Raises:
        ConfigError: one sentence that names the key, the value given and what is allowed.
    """
    used = sections(job)
    composed = _compose(job, [_checked(job, override, used) for override in overrides])
    # Paths of other sections are written as ${storage.root}/...: they must be as absolute as the root is.
    storage = _validated({"storage": _resolved(composed).get("storage", {})}).storage
    OmegaConf.update(composed, "storage", storage.model_dump(), force_add=True)
    return _validated(_resolved(composed))


def sections(job: str) -> dict[str, list[str]]:
    """The sections that a job uses, each with its options in configs/ (none where it has keys only).

    Raises:
        ConfigError: there is no such job, or its file cannot be read.
    """
    folder = _folder()
    if not (folder / f"{job}.yaml").is_file():
        jobs = [path.stem for path in folder.glob("*.yaml") if path.name != RUNTIME_ENV]
        raise ConfigError(unknown("job", job, jobs))
    try:
        file = yaml.safe_load((folder / f"{job}.yaml").read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"configs/{job}.yaml cannot be read: {first_line(error)}.") from error
    chosen = {section for entry in file.pop("defaults", []) if isinstance(entry, dict) for section in entry}
    named = chosen | set(file)
    order = [*Config.model_fields, *sorted(named - set(Config.model_fields))]
    return {name: sorted(p.stem for p in (folder / name).glob("*.yaml")) for name in order if name in named}


def run_job(job: str, run: Callable[[Config], object]) -> None:
    """The whole of a job's script: compose sys.argv's overrides, run, and leave with the exit status.

    0 done; 2 after one line on stderr that says what the user has to change; 130 interrupted. `--help` lists
    sections, options and keys. Any other exception is a defect and keeps its stack trace.
    """
    try:
        sys.exit(_run(job, run, sys.argv[1:]))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _run(job: str, run: Callable[[Config], object], arguments: list[str]) -> int:
    try:
        if {"-h", "--help"} & set(arguments):
            print(usage(job))
            return 0
        config = load(job, arguments)
        print(f"configuration: {record(job, config, arguments)}", flush=True)
        run(config)
    except ProspectError as error:
        # Ray gives a task's error its class and, as the cause, the error itself; its own text is a stack trace.
        print(f"error: {getattr(error, 'cause', error)}", file=sys.stderr)
        return 2
    return 0


def record(job: str, config: Config, overrides: Sequence[str]) -> str:
    """Writes the composed configuration below the storage root and says where; the name holds time and hash.

    Raises:
        ConfigError: `storage.root` cannot be written.
    """
    values = config.model_dump(mode="json")
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    name = f"configs/{job}-{stamp}-{fingerprint(values)[:8]}.yaml"
    text = f"# python jobs/{shlex.join([f'{job}.py', *overrides])}\n{yaml.safe_dump(values, sort_keys=False)}"
    try:
        filesystem, root = open_filesystem(config.storage.root)
        write_file(filesystem, f"{root}/{name}", text.encode())
    except (OSError, pyarrow.ArrowException, DataError) as error:
        message = f"`storage.root` is {config.storage.root}, which cannot be written: {first_line(error)}."
        raise ConfigError(message, field="storage.root") from error
    return f"{config.storage.root}/{name}"


def usage(job: str) -> str:
    """What `--help` prints: every section of the job with its options, and every key with value and meaning."""
    used, config = sections(job), load(job)
    about = (getattr(sys.modules["__main__"], "__doc__", None) or "").strip()
    lines = [f"usage: python jobs/{job}.py [SECTION=OPTION] [SECTION.KEY=VALUE] ...", *([about] if about else [])]
    for section, options in used.items():
        choice = f" ({section}={'|'.join(options)})" if options else ""
        settings = getattr(config, section)
        if not isinstance(settings, BaseModel):
            text = " ".join((Config.model_fields[section].description or "").split())
            lines += ["", f"{section}={shown(settings)}", f"    {text}"]
            continue
        lines += ["", f"{section}{choice}: {(type(settings).__doc__ or '').strip().splitlines()[0]}"]
        for key, value, text in documented(settings, f"{section}."):
            lines += [f"  {key}={shown(value)}", *([f"      {text}"] if text else [])]
    return "\n".join(lines)


def documented(settings: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Every key below `settings` as (dotted key, value, one-line description)."""
    for name, field in type(settings).model_fields.items():
        value, key = getattr(settings, name), f"{prefix}{name}"
        if isinstance(value, BaseModel):
            yield from documented(value, f"{key}.")
        else:
            yield key, value, " ".join((field.description or "").split())


def _is_plain(name: str) -> bool:
    """Whether a key of `Config` is a value, and no section of keys."""
    return Config.model_fields[name].annotation in (str | None, bool)


def _folder() -> Path:
    """configs/ of the repository that this file belongs to, or of the uploaded working directory."""
    candidates = (Path(__file__).resolve().parents[2] / "configs", Path.cwd() / "configs")
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise ConfigError(f"There is no configs/ in {Path.cwd()}: start the job from the repository's root.")


def _compose(job: str, overrides: list[str]) -> DictConfig:
    try:
        with initialize_config_dir(str(_folder()), version_base="1.3"):
            return compose(job, overrides)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"configs/{job}.yaml cannot be composed: {first_line(error)}.") from error


def _resolved(composed: DictConfig) -> dict[str, Any]:
    try:
        values = OmegaConf.to_container(composed, resolve=True)
    except InterpolationResolutionError as error:
        raise ConfigError(f"`{error.full_key}` cannot be resolved: {first_line(error)}.") from error
    return {str(section): value for section, value in values.items()} if isinstance(values, dict) else {}


def _validated(values: dict[str, Any]) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        path, sentence = describe(error, values, Config)
        raise ConfigError(sentence, field=path) from error


def _checked(job: str, override: str, used: dict[str, list[str]]) -> str:
    """The override as Hydra takes it, once its section and option are known to exist."""
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as error:
        raise ConfigError(f"`{override}` is no override: write key=value, such as storage.root=/data.") from error
    if parsed.type is None or parsed.type.name != "CHANGE" or parsed.is_sweep_override():
        raise ConfigError(f"`{override}` is no override: write key=value, a list as key=[a,b], and nothing before it.")
    section, _, key = parsed.key_or_group.partition(".")
    if section not in used:
        if section in Config.model_fields:
            raise ConfigError(f"The job {job} does not use `{section}`; it uses {', '.join(used)}.", field=section)
        raise ConfigError(unknown("section", section, used), field=section)
    if key or _is_plain(section):
        return f"++{override}"  # Hydra's own check knows the YAML's keys only; the class knows them all
    if not used[section]:
        raise ConfigError(f"`{section}` has no options to choose from: set its keys, as {section}.KEY=value.")
    if str(parsed.value()) not in used[section]:
        raise ConfigError(unknown("option", str(parsed.value()), used[section], of=section), field=section)
    return override
