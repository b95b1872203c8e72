"""Compose one configuration out of configs/ and key=value overrides.

A file in configs/ names the sections that a job uses and the option each starts from; the classes hold the
defaults and the checks. Every mistake is a `ConfigError` of one sentence.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from pydantic import ValidationError

from prospect.config.overrides import Text, check_section, read_override
from prospect.config.schema import Config
from prospect.errors import ConfigError
from prospect.messages import first_line, first_mistake, unknown

RUNTIME_ENV = "runtime_env.yaml"
"""The file of configs/ that belongs to Ray, not to a job."""


C = TypeVar("C", bound=Config)


@overload
def load(job: str, overrides: Sequence[str] = ()) -> Config: ...


@overload
def load(job: str, overrides: Sequence[str], schema: type[C]) -> C: ...


def load(job: str, overrides: Sequence[str] = (), schema: type[Config] = Config) -> Config:
    """The configuration of a job.

    Args:
        job: name of a file in configs/, such as `train`.
        overrides: `section=option` and `section.key=value`, in Hydra's value grammar; text as it is.
        schema: the class that has the job's sections.

    Raises:
        ConfigError: one sentence that names the key, the value given and what is allowed.
    """
    composed = _overridden(job, overrides, schema)
    # Paths of other sections are written as ${storage.root}/...: they must be as absolute as the root is.
    storage = _validated({"storage": _resolved(composed).get("storage", {})}, Config).storage
    OmegaConf.update(composed, "storage", storage.model_dump(), force_add=True)
    return _validated(_resolved(composed), schema)


def sections(job: str) -> dict[str, list[str]]:
    """The sections that a job uses, each with its options in configs/ (none where it has keys only).

    Raises:
        ConfigError: the job is unknown, or its file cannot be read.
    """
    folder = _folder()
    if job not in jobs():
        raise ConfigError(unknown("job", job, jobs()))
    try:
        file = yaml.safe_load((folder / f"{job}.yaml").read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"configs/{job}.yaml cannot be read: {first_line(error)}.") from error
    chosen = {section for entry in file.pop("defaults", []) if isinstance(entry, dict) for section in entry}
    named = chosen | set(file)
    order = [*Config.model_fields, *sorted(named - set(Config.model_fields))]
    return {name: sorted(p.stem for p in (folder / name).glob("*.yaml")) for name in order if name in named}


def jobs() -> list[str]:
    """The jobs that have a file in configs/."""
    return [path.stem for path in _folder().glob("*.yaml") if path.name != RUNTIME_ENV]


def _folder() -> Path:
    """configs/ of this package, or of the uploaded working directory: an upload of the package alone leaves it out."""
    candidates = (Path(__file__).resolve().parents[1] / "configs", Path.cwd() / "configs")
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise ConfigError(f"{Path.cwd()} holds no configs/; start the job from the repository's root.")


def _all_sections() -> set[str]:
    return {section for job in jobs() for section in sections(job)}


def _overridden(job: str, overrides: Sequence[str], schema: type[Config]) -> DictConfig:
    used = sections(job)
    choices: list[str] = []
    texts: list[Text] = []
    for override in overrides:
        read = read_override(override, schema)
        if check_section(job, override, used, schema, _all_sections):
            choices.append(override)
        elif isinstance(read, Text):
            texts.append(read)
        else:
            choices.append(f"++{override}")  # Hydra's own check knows the YAML's keys only; the class knows them all
    composed = _compose(job, choices)
    for key, value in texts:
        try:
            OmegaConf.update(composed, key, value, force_add=True)
        except OmegaConfBaseException as error:  # what `${` begins has no end
            expected = "expected a reference behind `${`, for example ${storage.root}"
            raise ConfigError(f"`{key}` cannot be resolved; {expected}.", field=key) from error
    return composed


def _compose(job: str, overrides: list[str]) -> DictConfig:
    try:
        with initialize_config_dir(str(_folder()), version_base="1.3"):
            return compose(job, overrides)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"configs/{job}.yaml cannot be composed: {first_line(error)}.") from error


def _resolved(composed: DictConfig) -> dict[str, Any]:
    try:
        if missing := sorted(OmegaConf.missing_keys(composed)):
            raise ConfigError(f"`{missing[0]}` is missing: give {missing[0]}=PATH of your own data.", field=missing[0])
        values = OmegaConf.to_container(composed, resolve=True)
    except InterpolationResolutionError as error:
        raise ConfigError(f"`{error.full_key}` cannot be resolved: {first_line(error)}.") from error
    return {str(section): value for section, value in values.items()} if isinstance(values, dict) else {}


def _validated(values: dict[str, Any], schema: type[C]) -> C:
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        mistake = first_mistake(error.errors(include_url=False), values, schema)
        raise ConfigError(f"{mistake.about(f'`{mistake.field}`')}.", field=mistake.field) from error
