"""Run a job from its command line: overrides, help, the record of the configuration, exit status."""

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import BaseModel

from prospect.config.load import load, sections
from prospect.config.schema import Config
from prospect.errors import ConfigError, DataError, ProspectError
from prospect.files import write_below
from prospect.hashing import fingerprint
from prospect.messages import first_line, shown, without_passwords

C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Command:
    """The command of a job, for usage and records."""

    name: str
    """`python jobs/train.py` or `prospect train`."""
    about: str

    @classmethod
    def script(cls, job: str) -> "Command":
        """The command of jobs/JOB.py, described by its docstring."""
        return cls(f"python jobs/{job}.py", (getattr(sys.modules["__main__"], "__doc__", None) or "").strip())


def run_job(
    job: str,
    run: Callable[[C], object],
    arguments: Sequence[str],
    command: Command,
    schema: type[C],
) -> NoReturn:
    """Compose the configuration, run the job, and leave with the exit status.

    0 done; 2 after one line on stderr that says what the user has to change; 130 interrupted. `--help` lists
    sections, options and keys. Any other exception is a defect and keeps its stack trace.

    Args:
        job: name of a file in configs/.
        run: the function of the job.
        arguments: overrides, or `--help`.
        command: what the user typed before them.
        schema: the class that has the job's sections.
    """
    try:
        sys.exit(_run(job, run, arguments, command, schema))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _run(job: str, run: Callable[[C], object], arguments: Sequence[str], command: Command, schema: type[C]) -> int:
    try:
        if {"-h", "--help"} & set(arguments):
            print(usage(job, command, schema))
            return 0
        config = load(job, arguments, schema)
        print(f"configuration: {record(job, config, arguments, command)}", flush=True)
        run(config)
    except ProspectError as error:
        # Ray gives a task's error its class and, as the cause, the error itself; its own text is a stack trace.
        print(f"error: {getattr(error, 'cause', error)}", file=sys.stderr)
        return 2
    return 0


def record(job: str, config: Config, overrides: Sequence[str], command: Command) -> str:
    """Write the composed configuration below the storage root; return its path, named by time and hash.

    Raises:
        ConfigError: `storage.root` cannot be written.
    """
    values = config.model_dump(mode="json")
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    name = f"configs/{job}-{stamp}-{fingerprint(values)[:8]}.yaml"
    text = without_passwords(
        f"# {shlex.join([*command.name.split(), *overrides])}\n{yaml.safe_dump(values, sort_keys=False)}"
    )
    try:
        write_below(config.storage.root, name, text)
    except DataError as error:
        message = f"`storage.root` ({config.storage.root}) cannot be written: {first_line(error)}."
        raise ConfigError(message, field="storage.root") from error
    return f"{config.storage.root}/{name}"


def usage(job: str, command: Command, schema: type[Config]) -> str:
    """What `--help` prints: every section of the job with its options, and every key with value and meaning."""
    used, config = sections(job), load(job, (), schema)
    lines = [f"usage: {command.name} [SECTION=OPTION] [SECTION.KEY=VALUE] ..."]
    lines += [command.about] if command.about else []
    for section, options in used.items():
        choice = f" ({section}={'|'.join(options)})" if options else ""
        settings = getattr(config, section)
        if not isinstance(settings, BaseModel):
            text = " ".join((schema.model_fields[section].description or "").split())
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
