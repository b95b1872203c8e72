"""The Batch API: each round uploads a file of requests and reads a file of answers; wrong answers are asked again.

`<root>/labels/llm/batches/<id>.json` is one `Submission`, written before the batch is made and again when its id is
known: a driver that dies at any moment finds its batch again and never pays twice.
"""

import asyncio
import json
import logging
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final

import openai
from openai.types import Batch

from prospect.data.labels.llm.cache import LLMExchange
from prospect.data.labels.llm.settings import LLMSettings
from prospect.dialogue.schema import Record
from prospect.llm.cache import Cache
from prospect.llm.client import Endpoint
from prospect.llm.errors import EndpointError, LostRequest
from prospect.llm.exchange import CachedAnswer, now

log = logging.getLogger(__name__)
PATH: Final = "/v1/chat/completions"
TERMINAL = ("completed", "failed", "expired", "cancelled")
CLOCK_SKEW_S = 3600
"""How far the endpoint's clock may lie behind ours when a batch of ours is looked for."""


class BatchError(EndpointError):
    """A batch failed, expired or was cancelled; its answers are kept."""

    code = "batch"


class Submission(Record):
    """One batch of ours."""

    id: str
    base_url: str
    at: str
    requests: tuple[str, ...]
    """`custom_id` of each line: the conversation's key and how many attempts came before."""
    batch_id: str = ""
    """Empty while the endpoint has not answered yet."""
    status: str = "pending"
    """pending, one of the terminal states of the Batch API, or `unmade`: the driver died before the batch existed."""

    @property
    def name(self) -> str:
        return f"batches/{self.id}.json"


async def settle_in_batches(
    settings: LLMSettings,
    conversations: Sequence[LLMExchange],
    endpoint: Endpoint,
    cache: Cache[LLMExchange],
    settled: Callable[[LLMExchange], None],
) -> None:
    """Continues every conversation to its end, one round of batches for each answer.

    Raises:
        BatchError: a batch failed, expired or was cancelled.
        EndpointError: the endpoint cannot be used.
    """
    rounds = _Rounds(settings, conversations, endpoint, cache)
    submissions = await rounds.resume()
    while True:
        for submission in submissions:
            await rounds.collect(submission)
        for conversation in rounds.take_settled():
            settled(conversation)
        if not rounds.open:
            return
        submissions = await rounds.submit()


class _Rounds:
    def __init__(
        self,
        settings: LLMSettings,
        conversations: Sequence[LLMExchange],
        endpoint: Endpoint,
        cache: Cache[LLMExchange],
    ) -> None:
        self.open = {conversation.key: conversation for conversation in conversations}
        self.endpoint, self.settings, self.cache = endpoint, settings, cache
        self.client = endpoint.client.with_options(max_retries=self.settings.transport_retries)
        self.times_lost: Counter[str] = Counter()
        self.hopeless: set[str] = set()
        """Keys of conversations that the endpoint refuses for good."""

    def take_settled(self) -> list[LLMExchange]:
        """Removes and returns the conversations that need no further request."""
        limit, retries = self.settings.transport_retries, self.settings.max_retries
        settled = [
            conversation
            for key, conversation in self.open.items()
            if conversation.finished(retries) or self.times_lost[key] > limit or key in self.hopeless
        ]
        for conversation in settled:
            del self.open[conversation.key]
        return settled

    async def resume(self) -> list[Submission]:
        """Batches about open conversations that an earlier run submitted and did not collect."""
        found = []
        for name in self.cache.names("batches"):
            submission = Submission.model_validate_json(self.cache.read(name) or "")
            ours = any(_key(request) in self.open for request in submission.requests)
            if submission.status != "pending" or submission.base_url != self.settings.base_url or not ours:
                continue
            if not submission.batch_id:
                batch_id = await self.endpoint.management(self._look_for(submission))
                submission = self._note(submission, batch_id=batch_id, status="pending" if batch_id else "unmade")
            if submission.batch_id:
                found.append(submission)
        return found

    async def submit(self) -> list[Submission]:
        """Sends the next request of every open conversation."""
        waiting, size = [*self.open.values()], self.settings.batch_size
        return [await self._submit(waiting[start : start + size]) for start in range(0, len(waiting), size)]

    async def collect(self, submission: Submission) -> None:
        """Waits for a batch and takes over every answer and every failure of it.

        Raises:
            BatchError: it did not complete; what it answered is kept.
            EndpointError: a line says that no request can succeed.
        """
        batch = await self._poll(submission)
        fatal: EndpointError | None = None
        lines = {str(line.get("custom_id")): line async for line in self._lines(batch)}
        if batch.status == "completed":  # what has no line is lost too; of another batch it was never asked
            lines = {request: lines.get(request, {}) for request in submission.requests}
        for request, line in lines.items():
            try:
                self._take(request, line)
            except EndpointError as error:
                fatal = error
        self._note(submission, status=batch.status)
        if batch.status != "completed":
            answered = sum((line.get("response") or {}).get("status_code") == 200 for line in lines.values())
            raise self._failed(batch, answered, len(submission.requests))
        if fatal is not None:
            raise fatal

    def _failed(self, batch: Batch, answered: int, total: int) -> BatchError:
        errors = (batch.errors and batch.errors.data) or []
        why = self.endpoint.clean("; ".join(error.message or error.code or "" for error in errors))
        return BatchError(
            f"Batch {batch.id} at {self.settings.base_url} {batch.status}"
            f"{f' ({why})' if why else ''} with {answered} of {total} requests answered, which are kept: "
            "run again to submit the rest.",
            field="labels.llm.mode",
        )

    async def _submit(self, conversations: Sequence[LLMExchange]) -> Submission:
        for conversation in conversations:
            self.cache.keep(conversation)  # a later run may collect this batch without asking about the same videos
        lines = {f"{each.key}-{len(each.attempts)}": each.body(self.settings) for each in conversations}
        submission = Submission(id=uuid.uuid4().hex, base_url=self.settings.base_url, at=now(), requests=tuple(lines))
        self._note(submission)
        text = "\n".join(
            json.dumps({"custom_id": request, "method": "POST", "url": PATH, "body": body})
            for request, body in lines.items()
        )
        upload = self.client.files.create(file=(f"{submission.id}.jsonl", text.encode()), purpose="batch")
        file = await self.endpoint.management(upload)
        create = self.client.batches.create(
            input_file_id=file.id, endpoint=PATH, completion_window="24h", metadata={"submission": submission.id}
        )
        batch = await self.endpoint.management(create)
        return self._note(submission, batch_id=batch.id)

    async def _poll(self, submission: Submission) -> Batch:
        while True:
            batch = await self.endpoint.management(self._retrieve(submission))
            if batch.status in TERMINAL:
                return batch
            counts = batch.request_counts
            log.info(
                "batch %s: %s, %s of %s", batch.id, batch.status, counts and counts.completed, counts and counts.total
            )
            await asyncio.sleep(self.settings.poll_s)

    async def _retrieve(self, submission: Submission) -> Batch:
        try:
            return await self.client.batches.retrieve(submission.batch_id)
        except openai.NotFoundError as error:
            where = f"{self.cache.folder}/{submission.name}"
            raise BatchError(
                f"{self.settings.base_url} does not know batch {submission.batch_id} any more: delete {where} to "
                "submit its requests again.",
                field="labels.llm.base_url",
            ) from error

    async def _look_for(self, submission: Submission) -> str:
        """Id of the batch made for `submission`; empty if it was not made. The endpoint lists the latest first."""
        earliest = datetime.fromisoformat(submission.at).timestamp() - CLOCK_SKEW_S
        try:
            async for batch in self.client.batches.list(limit=100):
                if (batch.metadata or {}).get("submission") == submission.id:
                    return batch.id
                if batch.created_at < earliest:
                    break
        except openai.NotFoundError:  # an endpoint that lists no batches: nothing can be found there
            pass
        return ""

    async def _lines(self, batch: Batch) -> AsyncIterator[dict[str, Any]]:
        """Decoded objects of the output file and of the error file; other lines are skipped."""
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
            content = await self.endpoint.management(self.client.files.content(file_id))
            for line in _objects(content.content):
                yield line

    def _take(self, request: str, line: dict[str, Any]) -> None:
        """Adds one line of a batch to its conversation, once.

        Raises:
            EndpointError: the line says that no request can succeed; kept all the same.
        """
        key = _key(request)
        conversation = self.open.get(key) or self.cache.find(key)
        if conversation is None or any(attempt.request_id == request for attempt in conversation.attempts):
            return
        fatal: Exception | None = None
        try:
            conversation = conversation.answered(self._answer(line), request)
            self.times_lost[key] = 0
        except (LostRequest, EndpointError) as error:
            conversation, fatal = conversation.lost(str(error), request), error
            self.times_lost[key] += 1
            if isinstance(error, LostRequest) and not error.again:
                self.hopeless.add(key)
        self.cache.keep(conversation)
        if key in self.open:
            self.open[key] = conversation
        if isinstance(fatal, EndpointError):
            raise fatal

    def _answer(self, line: dict[str, Any]) -> CachedAnswer:
        response = line.get("response") or {}
        status, body = response.get("status_code"), response.get("body")
        if status == 200 and isinstance(body, dict):
            return self.endpoint.answer(body)
        if isinstance(status, int) and status >= 400:
            raise self.endpoint.refusal(status, body, {})
        error = line.get("error") or {}
        raise LostRequest(
            self.endpoint.clean(f"{error.get('code', '')} {error.get('message', '')}".strip()) or "no line in batch"
        )

    def _note(self, submission: Submission, **changes: str) -> Submission:
        submission = submission.model_copy(update=changes)
        self.cache.write(submission.name, submission.model_dump_json(indent=1))
        return submission


def _key(request: str) -> str:
    return request.rpartition("-")[0]


def _objects(content: bytes) -> Iterator[dict[str, Any]]:
    for line in content.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value
