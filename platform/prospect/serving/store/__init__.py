"""The session store: what survives the death of an engine or a gateway, in SQLite or PostgreSQL."""

from prospect.serving.store.database import StoreUnavailable
from prospect.serving.store.keys import KeyTable
from prospect.serving.store.schema import EventRow, FrameRow, KeyRow, SessionChange, SessionRow
from prospect.serving.store.store import Fenced, Store

__all__ = [
    "EventRow",
    "Fenced",
    "FrameRow",
    "KeyRow",
    "KeyTable",
    "SessionChange",
    "SessionRow",
    "Store",
    "StoreUnavailable",
]
