"""Asks a language model which annotation line belongs to which step, for many videos."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from prospect.data.labels.llm.cache import LLMExchange, mapping_cache
from prospect.data.labels.llm.prompt import MappingRequest
from prospect.data.labels.llm.report import MappingReport, MappingResult
from prospect.data.labels.llm.settings import LLMSettings
from prospect.llm.cache import Cache
from prospect.llm.usage import Usage, failure_kinds

MappingCallback = Callable[[MappingResult], None]
"""Called once a video, when it is settled."""


def map_videos(
    requests: Sequence[MappingRequest], settings: LLMSettings, root: str, progress: MappingCallback | None = None
) -> MappingReport:
    """Asks for the mapping of every video that the cache under `root` does not hold.

    A run that was killed continues: finished videos are not asked about again, retries go on, and a submitted batch
    is collected. A video without any answer is asked about again by the next run; one with only wrong answers is
    not.

    Args:
        requests: one a video; those with equal content are asked about once.
        settings: endpoint, limits and prices.
        root: path or URL of the storage root; conversations lie in `labels/llm/` under it.
        progress: called with each result as it comes, possibly from another thread.

    Raises:
        ConfigError: no key in the environment.
        EndpointError: no server listens, the key or model is refused, a batch failed; finished videos are kept.
        DataError: a file of the cache is damaged.
    """
    results: dict[int, MappingResult] = {}
    done: dict[str, LLMExchange] = {}
    cache = mapping_cache(root)
    conversations, places = _conversations(requests, settings, cache)
    earlier = {conversation.key: len(conversation.attempts) for conversation in conversations}

    def finish(index: int, result: MappingResult) -> None:
        results[index] = result
        if progress is not None:
            progress(result)

    def settled(conversation: LLMExchange) -> None:
        done[conversation.key] = conversation
        cached = len(conversation.attempts) == earlier[conversation.key]
        for index in places[conversation.key]:
            finish(index, _result(requests[index].video, conversation, cached, settings))

    for index, request in enumerate(requests):
        if (certain := _without_asking(request, settings)) is not None:
            finish(index, certain)
    still_open = []
    for conversation in conversations:
        if conversation.finished(settings.max_retries):
            settled(conversation)
        else:
            still_open.append(conversation)
    if still_open:
        _ask(still_open, settings, cache, settled)
    return _report(settings, [results[index] for index in range(len(requests))], done.values(), earlier)


def _conversations(
    requests: Sequence[MappingRequest], settings: LLMSettings, cache: Cache[LLMExchange]
) -> tuple[list[LLMExchange], dict[str, list[int]]]:
    """One conversation for each different content, as far as the cache has it, and the requests it answers."""
    begun: dict[str, LLMExchange] = {}
    places: dict[str, list[int]] = defaultdict(list)
    for index, request in enumerate(requests):
        if _without_asking(request, settings) is None:
            conversation = LLMExchange.begin(request, settings)
            begun.setdefault(conversation.key, conversation)
            places[conversation.key].append(index)
    return cache.recall(begun.values()), places


def _ask(
    conversations: list[LLMExchange],
    settings: LLMSettings,
    cache: Cache[LLMExchange],
    settled: Callable[[LLMExchange], None],
) -> None:
    # openai takes a second to import, which a run that the cache answers, or the aligner, has no use for.
    from prospect.data.labels.llm.batch import settle_in_batches
    from prospect.llm.asking import ask_all

    settle = partial(settle_in_batches, settings) if settings.mode == "batch" else None
    ask_all(conversations, settings, cache, settled, settle)


def _without_asking(request: MappingRequest, settings: LLMSettings) -> MappingResult | None:
    """The result where no model is needed: only one mapping, or none, is possible."""
    steps, blocks = len(request.steps), len(request.blocks)
    if not steps or blocks < steps:
        reason = f"{blocks} blocks cannot give each of {steps} steps one" if steps else "there are no steps"
        return MappingResult(request.video, settings.on_failure, reason=reason)
    if steps == 1 or blocks == steps:
        return MappingResult(request.video, "mapped", assignment=tuple(min(i, steps - 1) for i in range(blocks)))
    return None


def _result(video: str, conversation: LLMExchange, cached: bool, settings: LLMSettings) -> MappingResult:
    mapped = conversation.assignment is not None
    return MappingResult(
        video,
        "mapped" if mapped else settings.on_failure,
        assignment=conversation.assignment,
        reason="" if mapped else conversation.failure,
        key=conversation.key,
        attempts=len(conversation.attempts),
        cached=cached,
    )


def _report(
    settings: LLMSettings, results: list[MappingResult], done: Iterable[LLMExchange], earlier: dict[str, int]
) -> MappingReport:
    attempts = [(conversation.attempts, earlier[conversation.key]) for conversation in done]
    kinds = sum((failure_kinds(all_of_it) for all_of_it, _ in attempts), Counter())
    return MappingReport(
        settings.model,
        tuple(results),
        spent=Usage.of((attempt for all_of_it, kept in attempts for attempt in all_of_it[kept:]), settings),
        cached=Usage.of((attempt for all_of_it, kept in attempts for attempt in all_of_it[:kept]), settings),
        failures=dict(kinds),
    )
