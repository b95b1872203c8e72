"""Hold several sessions at once with asyncio: the protocol's typed messages over a WebSocket of your own.

Run: python examples/stream_async.py PICTURE [--url ws://127.0.0.1:8000] [--sessions 3] [--frames 4]
"""

import argparse
import asyncio
from pathlib import Path

from pydantic import BaseModel
from websockets.asyncio.client import ClientConnection, connect

from prospect.protocol.messages import (
    FrameAppend,
    FrameDecision,
    SessionClose,
    SessionClosed,
    SessionCreated,
    SessionUpdate,
)
from prospect.protocol.parsing import parse_server


async def send(socket: ClientConnection, message: BaseModel) -> None:
    await socket.send(message.model_dump_json(exclude_none=True))


async def stream(url: str, picture: bytes, frames: int, goal: str) -> int:
    """Open a session, send frames, and return how many were decided."""
    async with connect(f"{url}/v1/stream", proxy=None) as socket:
        await send(socket, SessionUpdate(goal=goal, steps=(goal,)))
        created = parse_server(await socket.recv())
        if not isinstance(created, SessionCreated):
            raise ConnectionError(f"the server refused the session: {created}")
        for seq in range(frames):
            await send(socket, FrameAppend(seq=seq, image=picture))
        await send(socket, SessionClose())
        decided = 0
        async for data in socket:
            message = parse_server(data)
            decided += isinstance(message, FrameDecision)
            if isinstance(message, SessionClosed):
                return decided
    raise ConnectionError("the server left before the session was closed")


async def run(url: str, picture: bytes, sessions: int, frames: int) -> None:
    goals = [f"Task {number}" for number in range(1, sessions + 1)]
    decided = await asyncio.gather(*(stream(url, picture, frames, goal) for goal in goals))
    for goal, count in zip(goals, decided, strict=True):
        print(f"{goal}: {count} frames decided")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--url", default="ws://127.0.0.1:8000")
    parser.add_argument("--sessions", type=int, default=3)
    parser.add_argument("--frames", type=int, default=4)
    given = parser.parse_args()
    asyncio.run(run(given.url, given.picture.read_bytes(), given.sessions, given.frames))
