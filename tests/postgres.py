"""A real PostgreSQL for a test, of the programs that are installed on this machine."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.cluster import free_port
from tests.needs import skip_without

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [Path(shutil.which("initdb") or "/nowhere").parent]


@contextmanager
def database() -> Iterator[str]:
    """URL of an empty database on a server that ends with the block."""
    programs = PROGRAMS[-1]
    skip_without("postgresql", (programs / "initdb").is_file())
    folder = Path(tempfile.mkdtemp(prefix="prospect-postgres-"))
    if os.geteuid() == 0:  # the server refuses to run as root
        shutil.chown(folder, "postgres", "postgres")
        switch = ["runuser", "-u", "postgres", "--"]
    else:
        switch = []
    port = free_port()

    def run(program: str, *arguments: str) -> None:
        command = [*switch, str(programs / program), *arguments]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)

    data, log = f"{folder}/data", f"{folder}/log"
    run("initdb", "-D", data, "-U", "prospect", "--auth=trust", "--no-sync")
    try:
        options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories= -c fsync=off"
        run("pg_ctl", "-D", data, "-l", log, "-w", "-o", options, "start")
        yield f"postgresql+psycopg://prospect@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)
