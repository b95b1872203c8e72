"""One validated `Config` out of configs/ and key=value overrides. For jobs/ and serve/ only.

A file in configs/ names the sections that a job uses and the option each starts from; the classes hold the
defaults and the checks. Every mistake is a `ConfigError` of one sentence.
"""

import difflib
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pyarrow
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from pyarrow.fs import FileSystem
from pydantic import BaseModel, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from prospect.corpus import CorpusSettings
from prospect.dialogue.prompt import ContextSettings
from prospect.errors import ConfigError, ProspectError
from prospect.lineage import fingerprint
from prospect.model.configuration import ModelSettings
from prospect.settings import Settings

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


class ServingSettings(Settings):
    """The served application."""

    host: str = "127.0.0.1"
    """Address that the HTTP proxy listens on; 0.0.0.0 opens it to the network."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port of HTTP and WebSocket."""
    num_replicas: int = Field(default=1, ge=1)
    """Engines; each owns its sessions and their key-value caches."""
    model: str = "models:/prospect-dst@champion"
    """The served model: a folder, or `models:/NAME@ALIAS` of the registry."""
    max_sessions: int = Field(default=64, ge=1)
    """Live sessions of one replica; the next one is told that the server is busy."""


class Config(Settings):
    """All sections. A job reads those that its file in configs/ names; the others keep their defaults."""

    storage: StorageSettings = Field(default_factory=StorageSettings)
    corpus: CorpusSettings = Field(default_factory=CorpusSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    context: ContextSettings = Field(default_factory=ContextSettings)
    serving: ServingSettings = Field(default_factory=ServingSettings)


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
    try:
        values = OmegaConf.to_container(composed, resolve=True)
    except InterpolationResolutionError as error:
        raise ConfigError(f"`{error.full_key}` cannot be resolved: {_first_line(error)}.") from error
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise _config_error(error, values) from error


def sections(job: str) -> dict[str, list[str]]:
    """The sections that a job uses, each with its options in configs/ (none where it has keys only).

    Raises:
        ConfigError: there is no such job, or its file cannot be read.
    """
    folder = _folder()
    if not (folder / f"{job}.yaml").is_file():
        jobs = [path.stem for path in folder.glob("*.yaml") if path.name != RUNTIME_ENV]
        raise ConfigError(_unknown("job", job, jobs))
    composed = _compose(job, [], choices=True)
    chosen = {name for name in composed.hydra.runtime.choices if not name.startswith("hydra/")}
    named = chosen | {str(key) for key in composed if key != "hydra"}
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
        filesystem, root = FileSystem.from_uri(config.storage.root)
        filesystem.create_dir(f"{root}/configs", recursive=True)
        with filesystem.open_output_stream(f"{root}/{name}.part") as file:
            file.write(text.encode())
        filesystem.move(f"{root}/{name}.part", f"{root}/{name}")
    except (OSError, pyarrow.ArrowException) as error:
        message = f"`storage.root` is {config.storage.root}, which cannot be written: {_first_line(error)}."
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
        lines += ["", f"{section}{choice}: {(type(settings).__doc__ or '').strip().splitlines()[0]}"]
        for key, value, text in documented(settings, f"{section}."):
            lines += [f"  {key}={_shown(value)}", *([f"      {text}"] if text else [])]
    return "\n".join(lines)


def documented(settings: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Every key below `settings` as (dotted key, value, one-line description)."""
    for name, field in type(settings).model_fields.items():
        value, key = getattr(settings, name), f"{prefix}{name}"
        if isinstance(value, BaseModel):
            yield from documented(value, f"{key}.")
        else:
            yield key, value, " ".join((field.description or "").split())


def _folder() -> Path:
    """configs/ of the repository that this file belongs to, or of the uploaded working directory."""
    candidates = (Path(__file__).resolve().parents[2] / "configs", Path.cwd() / "configs")
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise ConfigError(f"There is no configs/ in {Path.cwd()}: start the job from the repository's root.")


def _compose(job: str, overrides: list[str], choices: bool = False) -> DictConfig:
    try:
        with initialize_config_dir(str(_folder()), version_base="1.3"):
            return compose(job, overrides, return_hydra_config=choices)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"configs/{job}.yaml cannot be composed: {_first_line(error)}.") from error


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
        raise ConfigError(_unknown("section", section, used), field=section)
    if key:
        return f"++{override}"  # Hydra's own check knows the YAML's keys only; the class knows them all
    if not used[section]:
        raise ConfigError(f"`{section}` has no options to choose from: set its keys, as {section}.KEY=value.")
    if str(parsed.value()) not in used[section]:
        raise ConfigError(_unknown("option", str(parsed.value()), used[section], of=section), field=section)
    return override


def _config_error(error: ValidationError, values: Any) -> ConfigError:
    """The first of pydantic's findings as a sentence; the count of the others, if any."""
    first, *others = error.errors(include_url=False)
    rest = f" ({len(others)} more after it)" if others else ""
    path = _path(first, values)
    return ConfigError(f"{_sentence(first, path)[:-1]}{rest}.", field=path)


def _sentence(finding: ErrorDetails, path: str) -> str:
    parent, _, name = path.rpartition(".")
    if finding["type"] == "extra_forbidden":
        return _unknown("key", name, list(_model_at(parent).model_fields), of=parent)
    if finding["type"] == "missing":
        return f"`{path}` must be given."
    allowed = finding["msg"].removeprefix("Value error, ").rstrip(".")
    if finding["type"] == "value_error" and isinstance(finding["input"], dict):  # keys that do not go together
        return f"`{path}` cannot work: {allowed}."
    return f"`{path}` cannot be {_shown(finding['input'])}: {allowed[:1].lower()}{allowed[1:]}."


def _path(finding: ErrorDetails, values: Any) -> str:
    """The dotted key of a finding, without the names that pydantic adds for the members of a union."""
    path: list[str] = []
    for part in finding["loc"]:
        inside = part in values if isinstance(values, dict) else isinstance(values, list) and isinstance(part, int)
        if inside:
            values = values[part]
        if inside or (finding["type"] == "missing" and part == finding["loc"][-1]):
            path.append(str(part))
    return ".".join(path)


def _model_at(path: str) -> type[BaseModel]:
    """The settings class that holds the keys below the dotted `path`."""
    model: type[BaseModel] = Config
    for name in filter(None, path.split(".")):
        annotation = model.model_fields[name].annotation
        members = (annotation, *get_args(annotation))
        model = next(kind for kind in members if isinstance(kind, type) and issubclass(kind, BaseModel))
    return model


def _unknown(kind: str, name: str, known: Sequence[str] | dict[str, list[str]], of: str = "") -> str:
    """One sentence: what is unknown, what was probably meant, what there is."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    meant = f" (did you mean {' or '.join(f'`{match}`' for match in close)}?)" if close else ""
    where = f" of `{of}`" if of else ""
    return f"Unknown {kind} `{name}`{where}{meant}; there are {', '.join(sorted(known))}."


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0].rstrip(".")
