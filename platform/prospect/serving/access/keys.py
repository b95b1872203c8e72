"""API keys: how one is made, written and recognised.

A key is `pk_ID_SECRET`. The store has its id and the SHA-256 of its secret: 256 random bits cannot be guessed however
fast the hash is, so that a slow one, which protects passwords that people choose, would only make each request slow.
The digest needs no salt either, since no two secrets are alike.
"""

import hashlib
import hmac
import re
import secrets
import time

from prospect.errors import ConfigError
from prospect.serving.store import KeyRow

SUBPROTOCOL = "prospect"
"""What the server selects where a WebSocket client offers subprotocols."""
KEY_SUBPROTOCOL = "prospect.key."
"""With the key behind it: a subprotocol that carries the key of a browser's WebSocket, which can set no header."""
MAX_NAME = 100

_KEY = re.compile(r"pk_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_NAME = re.compile(r"[^\x00-\x1f\x7f]+")


def new_key(name: str) -> tuple[str, KeyRow]:
    """Make a key; returns it as its owner gets it, and what the store keeps.

    Args:
        name: what its owner calls it.

    Raises:
        ConfigError: the name is empty, too long, or has control characters.
    """
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        message = f"NAME ({name[:MAX_NAME]!r}) must have 1 to {MAX_NAME} characters, none of them a control character"
        raise ConfigError(message, field="NAME")
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    return f"pk_{key_id}_{secret}", KeyRow(key_id, name, digest_of(secret), time.time())


def split_key(key: str) -> tuple[str, str] | None:
    """Id and secret of a key; None where it has not the form of one."""
    found = _KEY.fullmatch(key)
    return None if found is None else (found[1], found[2])


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def is_secret_of(row: KeyRow | None, secret: str) -> bool:
    """Whether a secret is that of a key, in a time that does not depend on how much of it is right."""
    expected = "" if row is None else row.digest
    return hmac.compare_digest(digest_of(secret), expected) and row is not None
