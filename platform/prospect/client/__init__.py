"""The typed client of a served model: HTTP calls and live streams, with threads or with asyncio.

client = ProspectClient("http://127.0.0.1:8000")
with client.live(goal="Make tea", steps=["boil water", "steep"]) as live:
    live.push(Path("frame.jpg").read_bytes())
    for message in live: ...
"""

from prospect.client.asynchronous import AsyncLiveSession, AsyncProspectClient
from prospect.client.http import ProspectClient
from prospect.client.live import LiveSession
from prospect.client.requests import Frame, ServerError

__all__ = ["AsyncLiveSession", "AsyncProspectClient", "Frame", "LiveSession", "ProspectClient", "ServerError"]
