"""Ids of sessions: inside the server one begins with the id of the API key that opened the session.

So a session of another key is unknown in the same way as one that never was, wherever it is asked for, and two keys
may each have a session of one name. Clients know the name alone; names have no dot.
"""


def scoped(key_id: str | None, name: str) -> str:
    """The id inside the server of a key's session of a name; None: a session of a server without keys."""
    return name if key_id is None else f"{key_id}.{name}"


def name_of(session_id: str) -> str:
    """The id by which its client knows a session."""
    return session_id.rpartition(".")[2]


def key_of(session_id: str) -> str | None:
    """Id of the key that a session belongs to."""
    return session_id.rpartition(".")[0] or None
