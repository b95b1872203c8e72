"""Hold several sessions at once with asyncio; a connection that breaks is made again.

Run: python examples/stream_async.py PICTURE [--url http://127.0.0.1:8000] [--sessions 3] [--frames 4]
"""

import argparse
import asyncio
from pathlib import Path

from prospect import AsyncProspectClient


async def stream(client: AsyncProspectClient, picture: bytes, frames: int, goal: str) -> int:
    """Open a session, send frames, and return how many were decided."""
    async with client.live(goal=goal, steps=[goal]) as live:
        for _ in range(frames):
            await live.push(picture)
        await live.close()
        return sum([message.type == "decision" async for message in live])


async def run(url: str, picture: bytes, sessions: int, frames: int) -> None:
    goals = [f"Task {number}" for number in range(1, sessions + 1)]
    async with AsyncProspectClient(url) as client:
        decided = await asyncio.gather(*(stream(client, picture, frames, goal) for goal in goals))
    for goal, count in zip(goals, decided, strict=True):
        print(f"{goal}: {count} frames decided")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--sessions", type=int, default=3)
    parser.add_argument("--frames", type=int, default=4)
    given = parser.parse_args()
    asyncio.run(run(given.url, given.picture.read_bytes(), given.sessions, given.frames))
