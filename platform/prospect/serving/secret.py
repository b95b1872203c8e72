"""What the processes of a served application know of each other, and nobody else."""

import os
import secrets
from contextlib import suppress
from pathlib import Path


def shared_secret(root: str) -> str:
    """Return the secret of a storage root: the same after a redeployment, so that sessions can move.

    Where the storage root is a URL it is a new one each time, and sessions are restored from the store.
    """
    if "://" in root:
        return secrets.token_hex(32)
    file = Path(root) / "serving.secret"
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.is_file():
        written = file.with_suffix(f".{os.getpid()}")
        written.touch(mode=0o600)
        written.write_text(secrets.token_hex(32))
        with suppress(FileExistsError):  # another application has begun at the same moment
            os.link(written, file)
        written.unlink()
    return file.read_text()
