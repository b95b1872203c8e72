"""Ratings of dialogues by a language model: correctness, promptness, efficiency and overall, from 1 to 5.

Each dialogue is rated several times and its scores averaged, as by ProAssist's LLM judge. Ratings are kept in
`<root>/cache/judge`, so that a judge that was killed goes on and asks nothing twice. A rating that never came is
missing: it is counted, and no score stands in for it.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from prospect.errors import ConfigError
from prospect.evaluation.judge_prompt import JudgeExchange
from prospect.evaluation.judge_report import JudgedDialogue, JudgedSystem, JudgeReport
from prospect.evaluation.lineage import counted
from prospect.evaluation.records import VideoDecisions
from prospect.evaluation.settings import EvaluationSettings, JudgeSettings
from prospect.llm.cache import Cache
from prospect.llm.usage import Usage, failure_kinds
from prospect.messages import unknown

FOLDER = "cache/judge"
"""Of kept ratings, below the storage root."""
PROGRESS_S = 5.0
"""Seconds between two lines of progress."""
_SHOWN = 5
"""Missing ratings that get a line of their own."""

ReportLine = Callable[[str], None]
Question = tuple[VideoDecisions, Sequence[JudgeExchange]]
"""A dialogue, and the conversations that ask for its ratings."""


def require_judge(settings: JudgeSettings, systems: Iterable[str], report: ReportLine) -> None:
    """Check that the judge answers, before anything is streamed for it.

    Args:
        settings: the judge.
        systems: names of all systems that could be rated.
        report: takes one line of progress.

    Raises:
        ConfigError: `judge.systems` names one that is not there, or the environment holds no usable key.
        EndpointError: the endpoint, its key or the model does not work.
    """
    from prospect.llm.asking import probe  # with openai, which takes a second

    known = [*systems]
    for name in settings.systems:
        if name not in known:
            raise ConfigError(unknown("system", name, known, of="evaluation.judge.systems"))
    probe(settings)
    report(f"eval   judge: {settings.model} at {settings.base_url} answers")


def judge_systems(
    systems: Mapping[str, Sequence[VideoDecisions]], settings: EvaluationSettings, root: str, report: ReportLine
) -> JudgeReport:
    """Rate every dialogue of every system whose reference says something.

    Args:
        systems: the streamed dialogues by name.
        settings: with a judge.
        root: path or URL of the storage root.
        report: takes one line of progress at a time.

    Raises:
        ConfigError: the environment holds no usable key.
        EndpointError: the endpoint stopped working; the ratings that came are kept.
        DataError: a kept rating is damaged.
    """
    judge = settings.judge
    if judge is None:
        raise ConfigError("`evaluation.judge.model` is missing.", field="evaluation.judge.model")
    questions = {name: _questions(videos, judge) for name, videos in systems.items()}
    begun = [exchange for asked in questions.values() for _, exchanges in asked for exchange in exchanges]
    settled, earlier = _settle(begun, judge, root, report)
    judged = {
        name: [JudgedDialogue.of(video, [settled[each.key] for each in exchanges]) for video, exchanges in asked]
        for name, asked in questions.items()
    }
    attempts = [(exchange.attempts, earlier[key]) for key, exchange in settled.items()]
    answers = [attempt.answer for tried, _ in attempts for attempt in tried if attempt.answer is not None]
    result = JudgeReport(
        model=judge.model,
        answered_as=tuple(sorted({answer.model for answer in answers if answer.model})),
        rules=judge.rules(),
        systems={name: JudgedSystem.of(found, judge.repetitions, settings) for name, found in judged.items()},
        without_reference=max((len(systems[name]) - len(asked) for name, asked in questions.items()), default=0),
        spent=Usage.of((attempt for tried, before in attempts for attempt in tried[before:]), judge),
        cached=Usage.of((attempt for tried, before in attempts for attempt in tried[:before]), judge),
        failures=dict(sum((failure_kinds(tried) for tried, _ in attempts), Counter())),
    )
    _tell(result, report)
    return result


def _questions(videos: Sequence[VideoDecisions], judge: JudgeSettings) -> list[Question]:
    return [
        (video, [JudgeExchange.begin(video, judge, repetition) for repetition in range(judge.repetitions)])
        for video in videos
        if video.reference_utterances
    ]


def _settle(
    begun: Sequence[JudgeExchange], judge: JudgeSettings, root: str, report: ReportLine
) -> tuple[dict[str, JudgeExchange], dict[str, int]]:
    """Every conversation at its end by key, and how many requests of it were made by earlier runs."""
    cache = Cache(root, FOLDER, JudgeExchange)
    known = cache.recall({exchange.key: exchange for exchange in begun}.values())
    earlier = {exchange.key: len(exchange.attempts) for exchange in known}
    done = {exchange.key: exchange for exchange in known if exchange.finished(judge.max_retries)}
    waiting = [exchange for exchange in known if exchange.key not in done]
    report(f"eval   judge: {counted(len(known), 'rating')}, {len(done)} of them from earlier runs")
    shown = time.monotonic()

    def settled(exchange: JudgeExchange) -> None:
        nonlocal shown
        done[exchange.key] = exchange
        if time.monotonic() - shown >= PROGRESS_S:
            asked = (attempt for key, each in done.items() for attempt in each.attempts[earlier[key] :])
            report(f"eval   judge: {len(done)}/{len(known)} ratings, {Usage.of(asked, judge)}")
            shown = time.monotonic()

    if waiting:
        from prospect.llm.asking import ask_all  # with openai, which ratings from the cache have no use for

        ask_all(waiting, judge, cache, settled)
    return done, earlier


def _tell(result: JudgeReport, report: ReportLine) -> None:
    """Say what is missing, and what the ratings cost."""
    missing = [
        f"{name}, dialogue {each.dialogue} of {each.video}: a rating is missing, {why}"
        for name, system in result.systems.items()
        for each in system.dialogues
        for why in each.missing
    ]
    for line in missing[:_SHOWN]:
        report(f"eval   judge: {line}")
    if len(missing) > _SHOWN:
        report(f"eval   judge: {len(missing) - _SHOWN} more ratings are missing")
    if result.without_reference:
        report(
            f"eval   judge: {counted(result.without_reference, 'dialogue')} without a word of the reference: not rated"
        )
    ratings = sum(system.ratings for system in result.systems.values())
    asked = sum(system.ratings_asked for system in result.systems.values())
    report(f"eval   judge: {ratings} of {asked} ratings by {result.model}; this run: {result.spent}")
    if result.cached.requests:
        report(f"eval   judge: earlier runs: {result.cached}")
