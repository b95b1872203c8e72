"""One WebSocket, one session: the client's messages in, the session's messages out."""

import asyncio
import logging
from contextlib import suppress

from fastapi import WebSocket
from pydantic import ValidationError
from starlette.types import Message
from starlette.websockets import WebSocketDisconnect, WebSocketState

from prospect.errors import ProspectError, SessionError
from prospect.messages import first_line
from prospect.protocol.messages import (
    TAKEN_OVER,
    UNAUTHORIZED,
    ClientMessage,
    ErrorMessage,
    EventAck,
    FrameAppend,
    ServerMessage,
    SessionClose,
    SessionUpdate,
    StatePatch,
    TextAppend,
)
from prospect.protocol.parsing import message_error
from prospect.serving.access.access import Access
from prospect.serving.access.caller import caller_of
from prospect.serving.access.guard import subprotocol_of
from prospect.serving.access.keyring import wrong_key
from prospect.serving.host import SessionHost
from prospect.serving.logs import about
from prospect.serving.mailbox import MAX_OTHERS, Mail, Mailbox, TooMany
from prospect.serving.session_ids import name_of, scoped

log = logging.getLogger(__name__)

NORMAL, GOING_AWAY, TRY_AGAIN = 1000, 1001, 1013
"""Close codes of RFC 6455 and its registry."""
OPENED_WITHIN_S = 20.0
"""Seconds within which a stream must open or resume a session."""
KEY_WATCHED_EVERY_S = 2.0
_LATER = {"busy", "too_many_sessions", "rate_limited"}
"""Refusals to open a session now, after which the stream is closed."""
_CLOSE_CODES = {"session.closed": NORMAL, "session.going_away": GOING_AWAY, "error": GOING_AWAY}
"""By a stream's last message; after any other, another stream has taken its session over, or another gateway."""


async def serve_socket(host: SessionHost, access: Access, socket: WebSocket) -> None:
    """Runs a stream until its client or its session is gone, or its key is revoked."""
    await socket.accept(subprotocol_of(socket.scope))
    connection = _Connection(host, access, socket)
    try:
        await connection.read()
    except WebSocketDisconnect:
        pass  # the client's way to leave; `leave` decides what becomes of the session
    finally:
        await connection.leave()


class _Connection:
    def __init__(self, host: SessionHost, access: Access, socket: WebSocket) -> None:
        self._host, self._access = host, access
        self._socket, self._caller = socket, caller_of(socket)
        self._named: str | None = socket.path_params.get("session_id")
        """The session of this stream, where its address says so."""
        self._session_id: str | None = None
        self._resume = ""
        self._mailbox = Mailbox()
        self._writer: asyncio.Task[None] | None = None

    async def read(self) -> None:
        """Handle messages one after the other, so that they stay in order, while others are received."""
        beside = [
            asyncio.create_task(each) for each in (self._receive_all(), self._expect_session(), self._watch_key())
        ]
        try:
            while (mail := await self._mailbox.get()) is not None:
                if not await self._answer(mail):
                    return
        finally:
            for task in beside:
                task.cancel()

    async def _receive_all(self) -> None:
        """Take all that comes: what waits in Serve's own queues has no bound."""
        while (received := await self._receive())["type"] != "websocket.disconnect":
            data = received.get("bytes") or (received.get("text") or "").encode()  # limits count bytes
            if not self._mailbox.put(data, self._caller.spend(1, len(data))):
                message = f"type: more than {MAX_OTHERS} messages wait"
                return await self._cut_off(ErrorMessage(code="overloaded", message=message), TRY_AGAIN)
        self._mailbox.end()

    async def _expect_session(self) -> None:
        """Cut off a client that opens no session in time."""
        await asyncio.sleep(OPENED_WITHIN_S)
        if self._session_id is None:
            message = f"type: session.update did not come within {OPENED_WITHIN_S:g} seconds"
            await self._cut_off(ErrorMessage(code="silent_client", message=message, field="type"), GOING_AWAY)

    async def _watch_key(self) -> None:
        """Cut off a client whose key is revoked."""
        if self._caller.key_id is None:
            return
        while await self._access.is_good(self._caller):  # noqa: ASYNC110  # another process revokes it
            await asyncio.sleep(KEY_WATCHED_EVERY_S)
        await self._cut_off(ErrorMessage.of(wrong_key()), UNAUTHORIZED)

    async def _cut_off(self, message: ErrorMessage, code: int) -> None:
        """End the stream with an error; a client that does not read it is cut off all the same."""
        try:
            with suppress(WebSocketDisconnect):
                await self._send(message)
                await self._close(code)
        finally:
            self._mailbox.end()

    async def _receive(self) -> Message:
        """The next message; a disconnection too where the proxy that holds the socket has died."""
        try:
            return await self._socket.receive()
        except Exception as error:
            lost = about("connection.lost", session=self._session_id)
            log.warning("the connection of session %s is lost: %s", self._session_id, first_line(error), extra=lost)
            return {"type": "websocket.disconnect", "code": 1006}

    async def _answer(self, mail: Mail) -> bool:
        """Handle a message, or say why not; returns whether the stream goes on."""
        seq = mail.seq if isinstance(mail, FrameAppend) else None
        try:
            if isinstance(mail, ProspectError):
                raise mail
            await self._handle(mail)
        except ProspectError as error:
            await self._refuse(ErrorMessage.of(error, seq))
            if error.code in _LATER and self._session_id is None:
                await self._close(TRY_AGAIN)
                return False
        except ValidationError as error:  # the session's id in the stream's address
            await self._refuse(ErrorMessage.of(message_error(error.errors(include_url=False)), seq))
        except WebSocketDisconnect:
            raise
        except Exception:
            log.exception("a message of session %s", self._session_id, extra=about("defect", session=self._session_id))
            await self._refuse(ErrorMessage.defect(seq))
        return True

    async def leave(self) -> None:
        """First of all tells the host: whoever cancels the handler may not let it wait for anything."""
        try:
            if self._session_id is not None:
                await self._host.leave(self._session_id, self._resume)
        finally:
            if self._writer is not None:
                self._writer.cancel()

    async def _handle(self, message: ClientMessage | TooMany) -> None:
        if isinstance(message, SessionUpdate):
            await self._open(message)
            return
        session_id = self._session_id
        if session_id is None:
            kind = "input_frame.append" if isinstance(message, TooMany) else message.type
            raise SessionError(f"type: {kind!r} came before session.update, which opens a session", field="type")
        match message:
            case TooMany():
                await self._host.drop(session_id, message.frame, self._resume)
            case FrameAppend():
                await self._host.push(session_id, message, self._resume)
            case TextAppend():
                await self._host.text(session_id, message, self._resume)
            case StatePatch():
                await self._host.patch(session_id, message.state, self._resume)
            case EventAck():
                await self._host.acknowledge(session_id, message.event, self._resume)
            case SessionClose():
                await self._host.close(session_id, self._resume)

    async def _open(self, update: SessionUpdate) -> None:
        if self._session_id is not None:
            name = name_of(self._session_id)
            raise SessionError(f"type: this stream has session {name!r}; open another one", field="type")
        if update.resume is not None:
            self._check_name(update.resume.partition(":")[0], "resume")
            created = await self._host.resume(update, self._caller.key_id)
        else:
            update = update.completed(self._named)
            self._check_name(update.session_id, "session_id")
            created = await self._host.create(update, True, self._caller.key_id)
        self._session_id, self._resume = scoped(self._caller.key_id, created.session_id), created.resume
        await self._send(created)
        self._writer = asyncio.create_task(self._write(self._session_id))

    def _check_name(self, session_id: str | None, field: str) -> None:
        if self._named not in (None, session_id):
            message = f"{field}: is for session {session_id!r}, and this stream's address for {self._named!r}"
            raise SessionError(message, field=field)

    async def _write(self, session_id: str) -> None:
        last: ServerMessage | None = None
        with suppress(WebSocketDisconnect):  # the reader sees it too, and leaves
            try:
                async for last in self._host.events(session_id, self._resume):
                    await self._send(last)
            except ProspectError as error:
                last = ErrorMessage.of(error)
                await self._send(last)
            left = TAKEN_OVER if session_id in self._host.open_sessions else GOING_AWAY  # to another gateway
            await self._close(left if last is None else _CLOSE_CODES.get(last.type, left))

    async def _refuse(self, message: ErrorMessage) -> None:
        self._host.monitor.refused(message.code, self._session_id)
        await self._send(message)

    async def _send(self, message: ServerMessage) -> None:
        if self._socket.application_state is WebSocketState.CONNECTED:  # the writer may have closed it
            await self._socket.send_text(message.model_dump_json(exclude_none=True))

    async def _close(self, code: int) -> None:
        if self._socket.application_state is WebSocketState.CONNECTED:
            await self._socket.close(code)
