"""The jobs by name: `prospect JOB key=value`, and the scripts of jobs/."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any, NoReturn

from prospect.config.cli import Command, run_job
from prospect.config.load import load
from prospect.config.schema import Config
from prospect.errors import ConfigError
from prospect.messages import unknown


@dataclass(frozen=True)
class Job:
    """A job that a user starts by its name."""

    about: str
    """What it is for, in one sentence."""
    function: str
    """`MODULE:FUNCTION`, called with the configuration; imported only then."""
    extra: str
    """Extra of the package that brings what the module imports."""
    schema: str = "prospect.config.schema:Config"
    """`MODULE:CLASS` of its configuration."""


SERVE, BENCHMARK = "prospect.serving.config:ServeConfig", "prospect.benchmarks.config:BenchmarkConfig"

CHECK = "prospect.check.config:CheckConfig"

JOBS = {
    "check": Job(
        "Look at a source, or at a base model, before anything is computed.", "prospect.check.job:check", "train", CHECK
    ),
    "embed": Job("Embed videos.", "prospect.cluster.embed:embed", "train"),
    "label": Job("Turn annotations into labels of the task state.", "prospect.cluster.label:label_and_show", "label"),
    "train": Job("Fine-tune a model on embeddings and labels.", "prospect.cluster.train:train_and_show", "train"),
    "eval": Job("Stream held-out videos and score the model.", "prospect.cluster.evaluate:evaluate_and_show", "train"),
    "serve": Job(
        "Host live sessions of a trained model.", "prospect.serving.deployments:serve_until_stopped", "serve", SERVE
    ),
    "demo": Job("Run the whole path on one machine, on videos that it draws.", "prospect.demo:demo", "all", SERVE),
    "benchmark": Job(
        "Measure one part against named alternatives.", "prospect.benchmarks.suites:run_suite", "all", BENCHMARK
    ),
}

KEYS = "keys"
PROBES = {
    "status": ("Say how a running deployment is: prospect status URL.", "prospect.probe.command:status"),
    "test": ("Stream a drawn clip through a deployment and check it.", "prospect.probe.command:test"),
}
"""Commands that look at a deployment: what each is for, and `MODULE:FUNCTION`."""

HELP = {"-h", "--help"}

PROMOTE = "promote"
PROMOTE_USAGE = """usage: prospect promote NAME VERSION [SECTION.KEY=VALUE] ...

Make a registered version the champion, which is served by default, or an earlier one again. An evaluation does it by
itself where the version is the first, or better than the champion on the same videos."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the job that the first argument names, with the others as its overrides."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    job, *overrides = given or ["--help"]
    if job in HELP:
        print(usage())
    elif job == "--version":
        print(metadata.version("prospect"))
    elif job == PROMOTE and not HELP & set(overrides):
        _promote(overrides)
    elif job == PROMOTE:
        print(PROMOTE_USAGE)
    elif job == KEYS:
        sys.exit(_imported("prospect.serving.access.command:main")(overrides))
    elif job in PROBES:
        sys.exit(_imported(PROBES[job][1])(overrides))
    elif job in JOBS:
        _run(job, overrides, Command(f"prospect {job}", JOBS[job].about))
    else:
        print(f"error: {unknown('job', job, JOBS)}", file=sys.stderr)
        sys.exit(2)


def _promote(arguments: Sequence[str]) -> NoReturn:
    if len(arguments) < 2:
        print(f"error: {PROMOTE_USAGE.splitlines()[0].removeprefix('usage: ')} needs both", file=sys.stderr)
        sys.exit(2)
    name, version, *overrides = arguments
    command = Command(f"prospect promote {name} {version}", "")

    def run(config: Config) -> None:
        _imported("prospect.cluster.promotion:promote_by_hand")(config, name, version)

    run_job("eval", run, overrides, command, Config)


def run_script(job: str) -> NoReturn:
    """Run a job as its script in jobs/, with the arguments of the command line as its overrides."""
    _run(job, sys.argv[1:], Command.script(job))


def load_config(job: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a job, of the class that has its sections.

    Args:
        job: name of a file in configs/, such as `train`.
        overrides: `section=option` and `section.key=value`, in Hydra's value grammar.

    Raises:
        ConfigError: one sentence that names the key, the value given and what is allowed.
    """
    return load(job, overrides, schema_of(job))


def schema_of(job: str) -> type[Config]:
    """The class of a job's configuration."""
    return _imported(JOBS[job].schema) if job in JOBS else Config


def usage() -> str:
    """What `prospect --help` prints."""
    width = max(map(len, JOBS))
    lines = [f"  {name:{width}}  {job.about}" for name, job in JOBS.items()]
    lines.append(f"  {PROMOTE:{width}}  Make a registered version the champion: prospect promote NAME VERSION.")
    lines.append(f"  {KEYS:{width}}  Make, list and revoke the API keys of served applications: prospect keys --help.")
    lines += [f"  {name:{width}}  {about}" for name, (about, _) in PROBES.items()]
    return "\n".join(["usage: prospect JOB [SECTION=OPTION] [SECTION.KEY=VALUE] ...", "", *lines, "", FOOT])


FOOT = "`prospect JOB --help` lists the sections, options and keys of a job."


def _run(job: str, overrides: Sequence[str], command: Command) -> NoReturn:
    run_job(job, lambda config: _call(job, config), overrides, command, schema_of(job))


def _call(job: str, config: Config) -> object:
    """Import the job's module and call it: libraries that it needs are imported once its configuration is right."""
    try:
        return _imported(JOBS[job].function)(config)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("", "prospect"):
            raise
        message = (
            f"`prospect {job}` imports {error.name}, which is not installed: pip install 'prospect[{JOBS[job].extra}]'."
        )
        raise ConfigError(message) from error


def _imported(place: str) -> Any:
    """What `MODULE:NAME` names."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
