"""A client of the endpoint: one request at a time within its rate limits, with failures as errors.py has them."""

import asyncio
import base64
import json
import os
import random
import re
import time
from collections.abc import Awaitable, Mapping
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, TypeVar
from urllib.parse import quote, quote_plus

import openai
from pydantic import BaseModel, BeforeValidator, ValidationError

from prospect.errors import ConfigError
from prospect.llm.errors import EndpointError, LostRequest
from prospect.llm.exchange import CachedAnswer
from prospect.llm.settings import EndpointSettings, Message
from prospect.messages import first_line

T = TypeVar("T")
LONGEST_BACKOFF_S = 60.0
SHORTEST_SPACING_S = 0.05
"""Between requests after the first 429."""
SHOWN_CHARACTERS = 300
REPEATABLE = (408, 409, 425, 429)
"""Status codes below 500 that may pass by themselves."""
THIS_REQUEST_ONLY = ("context_length_exceeded", "content_filter", "string_above_max_length")
"""Error codes of a 400 that speak of the content, not of how it is asked for."""


PROBE: Message = {"role": "user", "content": "Answer with the word OK."}


class RateLimit:
    """Spaces requests evenly: as the settings say, and further while the endpoint says that they are too many.

    A 429 pauses all requests for as long as it asks and doubles the spacing; each answer shrinks the spacing by a
    twentieth. Without this all requests would return together after the pause, and all but one be refused again.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._least = 60 / per_minute if per_minute else 0.0
        self._interval = self._least
        self._next = self._paused_until = 0.0

    async def turn(self) -> None:
        """Returns when the next request may be sent."""
        while (wait := self._next - time.monotonic()) > 0:  # noqa: ASYNC110 - a pause may lengthen it meanwhile
            await asyncio.sleep(wait)
        self._next = max(self._next, time.monotonic()) + self._interval

    def refused(self, pause: float) -> None:
        """There were too many requests; the next may be sent in `pause` seconds."""
        now = time.monotonic()
        if now >= self._paused_until:  # what was sent before the pause and is refused in it says nothing new
            self._interval = min(max(2 * self._interval, SHORTEST_SPACING_S), LONGEST_BACKOFF_S)
        self._paused_until = max(self._paused_until, now + pause)
        self._next = max(self._next, self._paused_until)

    def answered(self) -> None:
        self._interval = max(0.95 * self._interval, self._least)


class Endpoint:
    """A client of one endpoint; answers carry no trace of the key.

    Raises:
        ConfigError: the environment variable holds no key, or one that no header can carry; or the environment names
            a proxy or certificates that cannot be used.
    """

    def __init__(self, settings: EndpointSettings) -> None:
        self.settings = settings
        key = _read_key(settings)
        self._secret = _spellings(key) if key else None
        try:
            self.client = openai.AsyncOpenAI(
                base_url=settings.base_url, api_key=key or "none", timeout=settings.timeout_s, max_retries=0
            )
        except Exception as error:  # the HTTP library reads the environment, and has errors of its own for it
            raise _unusable_environment(error, settings.section) from None
        self._limit = RateLimit(settings.requests_per_minute)
        self._reached = False
        self._lost_in_a_row = 0
        self.answers = 0
        """How many requests were answered."""

    async def ask(self, body: dict[str, Any]) -> CachedAnswer:
        """One chat completion.

        Args:
            body: the request as the wire has it.

        Raises:
            LostRequest: no answer this time.
            EndpointError: no request can succeed.
        """
        await self._limit.turn()
        completions = self.client.chat.completions.with_raw_response
        rest = {key: value for key, value in body.items() if key not in ("model", "messages")}
        try:
            async with asyncio.timeout(self.settings.timeout_s):  # the client's own starts again with every byte
                response = await completions.create(model=body["model"], messages=body["messages"], extra_body=rest)
        except (TimeoutError, openai.APITimeoutError) as error:
            raise self._no_connection(error, f"no answer within {self.settings.timeout_s:g} s") from error
        except openai.APIConnectionError as error:
            raise self._no_connection(error, f"the connection was lost: {self._about(error)}") from error
        except openai.APIStatusError as error:
            raise self.refusal(error.status_code, error.body, error.response.headers) from error
        self._reached = True
        answer = self.answer(response.text)
        self._limit.answered()
        self.answers += 1
        self._lost_in_a_row = 0
        return answer

    async def probe(self) -> CachedAnswer:
        """One short request with the options of all others, sent again as often as they are.

        Raises:
            EndpointError: no request can succeed, or none has brought an answer.
        """
        body, times = self.settings.body([PROBE]), 0
        while True:
            try:
                return await self.ask(body)
            except LostRequest as lost:
                times += 1
                if not lost.again or times > self.settings.transport_retries:
                    raise self._stop(f"gave no answer: {lost}") from lost
                await self.back_off(lost, times)

    def answer(self, completion: str | Mapping[str, Any]) -> CachedAnswer:
        """The answer in a chat completion, as text or as decoded JSON.

        Raises:
            LostRequest: it is no chat completion.
        """
        try:
            if isinstance(completion, str):
                parsed = _Completion.model_validate_json(completion)
            else:
                parsed = _Completion.model_validate(completion)
            choice = parsed.choices[0]
        except (ValidationError, IndexError) as error:
            raise LostRequest(
                f"the answer is not a chat completion: {self.clean(str(completion))[:SHOWN_CHARACTERS]}"
            ) from error
        usage = parsed.usage or _Usage()
        return CachedAnswer(
            text=self.clean(choice.message.content or choice.message.refusal or ""),
            finish_reason=choice.finish_reason or "",
            model=parsed.model or "",
            input_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
        )

    def refusal(self, status: int, body: object, headers: Mapping[str, str]) -> Exception:
        """The error for a status of 4xx or 5xx: `LostRequest` or `EndpointError`."""
        code, message = _error_of(body)
        reason = f"HTTP {status}" + (f" ({self.clean(message)[:SHOWN_CHARACTERS]})" if message else "")
        if status >= 500 or (status in REPEATABLE and code != "insufficient_quota"):
            self._reached = True
            wait = _retry_after(headers)
            if wait is not None and wait > self.settings.max_wait_s:
                return self._stop(
                    f"asks to wait {wait:.0f} s, longer than `max_wait_s`, with {reason}; run again later"
                )
            return LostRequest(reason, retry_after=wait, busy=status == 429)
        if status in (400, 413, 422) and (self._reached or code in THIS_REQUEST_ONLY or "context length" in message):
            return LostRequest(reason, again=False)
        advice = {
            401: f"check the key in {self.settings.api_key_env or 'api_key_env'}",
            404: "check `model` and `base_url`",
        }
        return self._stop(f"answered {reason}; {advice.get(status, 'check the settings of the endpoint')}")

    async def back_off(self, lost: LostRequest, times: int) -> None:
        """Wait before a repetition, as long as the endpoint asks; after a 429 all requests wait."""
        longest = min(self.settings.backoff_s * 2 ** max(times - 1, 0), LONGEST_BACKOFF_S)
        wait = longest * random.uniform(0.75, 1) if lost.retry_after is None else lost.retry_after
        if lost.busy:
            self._limit.refused(wait)
        else:
            await asyncio.sleep(wait)

    def give_up(self, lost: LostRequest) -> None:
        """Count a conversation without an answer.

        Raises:
            EndpointError: no server listens, or too many conversations in a row had no answer.
        """
        if lost.unreachable:
            raise self._stop(f"cannot be reached: {lost}; check `base_url`") from lost
        self._lost_in_a_row += 1
        if self._lost_in_a_row >= self.settings.stop_after:
            many = f"{self._lost_in_a_row} {self.settings.subjects} in a row"
            raise self._stop(f"gave no answer for {many}, the last time: {lost}") from lost

    async def management(self, call: Awaitable[T]) -> T:
        """Await a call about files or batches, on which every request depends.

        Raises:
            EndpointError: the call failed.
        """
        try:
            return await call
        except openai.APIStatusError as error:
            refused = self.refusal(error.status_code, error.body, error.response.headers)
            raise self._stop(f"answered {refused}") if isinstance(refused, LostRequest) else refused from error
        except openai.APIConnectionError as error:
            raise self._stop(f"cannot be reached: {self._about(error)}") from error

    def clean(self, text: str) -> str:
        """Text of the endpoint without the key, which some repeat in their errors, in whatever spelling."""
        return self._secret.sub("***", text) if self._secret else text

    def _no_connection(self, error: Exception, reason: str) -> LostRequest:
        """A refused connection at the first request is a wrong address; later the server may be restarting."""
        nobody = type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout")
        lost = LostRequest(reason, unreachable=nobody)
        if nobody and not self._reached:
            self.give_up(lost)
        return lost

    def _stop(self, what: str) -> EndpointError:
        sentence = f"{self.settings.base_url} (model {self.settings.model}) {what}."
        return EndpointError(sentence, field=f"{self.settings.section}.base_url")

    def _about(self, error: Exception) -> str:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        return self.clean(first_line(cause) or type(cause).__name__)


class _Lenient(BaseModel):
    """Unknown fields are ignored: compatible endpoints add some and omit some."""


def _joined(content: Any) -> Any:
    """The text of a content that comes in parts; parts of other types, such as `thinking`, are not the answer."""
    if not isinstance(content, list):
        return content
    texts = (part.get("text") if isinstance(part, dict) else part for part in content)
    return "".join(text for text in texts if isinstance(text, str))


class _Message(_Lenient):
    content: Annotated[str | None, BeforeValidator(_joined)] = None
    refusal: str | None = None


class _Choice(_Lenient):
    message: _Message
    finish_reason: str | None = None


Tokens = Annotated[int, BeforeValidator(lambda count: 0 if count is None else count)]


class _Usage(_Lenient):
    prompt_tokens: Tokens = 0
    completion_tokens: Tokens = 0


class _Completion(_Lenient):
    choices: list[_Choice]
    model: str | None = None
    usage: _Usage | None = None


def _read_key(settings: EndpointSettings) -> str:
    """The key of the environment, without white space around it, such as the line break of a mounted file."""
    variable = settings.api_key_env
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    wrong = ""
    if not key:
        wrong = f"is missing or blank; set it to the key for {settings.base_url}"
    elif not re.fullmatch(r"[!-~]+", key):
        wrong = "must hold a key of printable ASCII characters without spaces, which a header can carry"
    if wrong:
        sentence = f"{settings.section}.api_key_env: the environment variable {variable} {wrong}."
        raise ConfigError(sentence, field=f"{settings.section}.api_key_env")
    return key


def _spellings(key: str) -> re.Pattern[str]:
    """The key as texts may have it: as it is, escaped for JSON, Python or a URL, and in Base64."""
    spelt = {key, json.dumps(key)[1:-1], repr(key)[1:-1], quote(key, safe=""), quote(key), quote_plus(key)}
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        spelt.add(encode(key.encode()).decode().rstrip("="))
    return re.compile("|".join(map(re.escape, sorted(spelt, key=len, reverse=True))), re.IGNORECASE)


def _unusable_environment(error: Exception, section: str) -> ConfigError:
    """What to change about proxies and certificates; their values may hold a password and are not repeated."""
    there = {name.upper(): name for name in os.environ if os.environ[name]}
    proxies = [there[name] for name in ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY") if name in there]
    certificates = [there[name] for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if name in there]
    if isinstance(error, OSError):
        names = " or ".join(certificates) or "the system"
        what = f"the certificates of {names} cannot be read ({type(error).__name__}); correct the variable or unset it"
    elif isinstance(error, ImportError):
        names = " or ".join(proxies) or "the environment"
        what = f"{names} names a SOCKS proxy, for which a package is missing: pip install 'httpx[socks]', or unset it"
    else:
        names = " or ".join(proxies) or "the environment"
        what = f"{names} names a proxy that cannot be used; write http://HOST:PORT, or unset it"
    return ConfigError(f"{section}: {what}.", field=section)


def _error_of(body: object) -> tuple[str, str]:
    """Code and message of an error body, which the client has unwrapped where it is of OpenAI's shape."""
    if isinstance(body, Mapping):
        body = body.get("error", body)
    if not isinstance(body, Mapping):
        return "", str(body or "")
    return str(body.get("code") or body.get("type") or ""), str(body.get("message") or "")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header, which may be a number or a date."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
        except ValueError:
            return None
    return seconds if seconds >= 0 else None
