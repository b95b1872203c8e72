"""`prospect JOB key=value`: the jobs by name, wherever the package is installed."""

import sys
from collections.abc import Sequence
from importlib import import_module, metadata

from prospect.config.cli import Command, run_job
from prospect.config.schema import Config
from prospect.errors import ConfigError
from prospect.messages import unknown

JOBS = {
    "embed": ("Embed videos.", "prospect.cluster.embed:embed", "train"),
    "label": ("Turn annotations into labels of the task state.", "prospect.cluster.label:label_and_show", "label"),
    "train": ("Fine-tune a model on embeddings and labels.", "prospect.cluster.train:train_and_show", "train"),
    "eval": ("Stream held-out videos and score the model.", "prospect.cluster.evaluate:evaluate_and_show", "train"),
    "serve": ("Host live sessions of a trained model.", "prospect.serving.deployments:serve_until_stopped", "serve"),
    "demo": ("Run the whole path on one machine, on videos that it draws.", "prospect.demo:demo", "all"),
    "benchmark": ("Measure one part against named alternatives.", "prospect.benchmarks.suites:run_suite", "all"),
}
"""What each job is for, the function that it calls, and the extra that brings what it imports."""

HELP = {"-h", "--help"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the job that the first argument names, with the others as its overrides."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    job, *overrides = given or ["--help"]
    if job in HELP:
        print(usage())
    elif job == "--version":
        print(metadata.version("prospect"))
    elif job in JOBS:
        run_job(job, lambda config: _call(job, config), overrides, Command(f"prospect {job}", JOBS[job][0]))
    else:
        print(f"error: {unknown('job', job, JOBS)}", file=sys.stderr)
        sys.exit(2)


def usage() -> str:
    """What `prospect --help` prints."""
    width = max(map(len, JOBS))
    lines = [f"  {name:{width}}  {about}" for name, (about, *_) in JOBS.items()]
    return "\n".join(["usage: prospect JOB [SECTION=OPTION] [SECTION.KEY=VALUE] ...", "", *lines, "", FOOT])


FOOT = "`prospect JOB --help` lists the sections, options and keys of a job."


def _call(job: str, config: Config) -> object:
    """Import the job's module and call it: libraries that it needs are imported once its configuration is right."""
    _, function, extra = JOBS[job]
    module, _, name = function.partition(":")
    try:
        return getattr(import_module(module), name)(config)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("", "prospect"):
            raise
        message = f"`prospect {job}` imports {error.name}, which is not installed: pip install 'prospect[{extra}]'."
        raise ConfigError(message) from error
