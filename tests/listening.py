"""Which sockets processes listen on, and what is in the files that they write."""

from collections.abc import Iterable, Iterator
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import psutil


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it has started, and these in turn."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def reachable(processes: Iterable[psutil.Process]) -> list[str]:
    """Sockets that listen on more than loopback, each with its process."""
    return [
        f"{address}:{port} of {process.pid} {' '.join(process.cmdline())[:80]}"
        for process, address, port in listeners(processes)
        if not _is_loopback(address)
    ]


def listeners(processes: Iterable[psutil.Process]) -> Iterator[tuple[psutil.Process, str, int]]:
    """Process, address and port of every listening socket."""
    for process in processes:
        try:
            found = [each for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN]
        except psutil.NoSuchProcess:
            continue
        yield from ((process, each.laddr.ip, each.laddr.port) for each in found)


def _is_loopback(address: str) -> bool:
    found = ip_address(address)
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return (mapped or found).is_loopback


def session_folder(processes: Iterable[psutil.Process]) -> Path:
    """Ray's folder of logs, as its processes are told."""
    [folder] = {
        argument.partition("=")[2]
        for process in processes
        for argument in process.cmdline()
        if argument.startswith("--log_dir=")
    }
    return Path(folder)


def files_with(folders: Iterable[Path], secrets: Iterable[str]) -> list[str]:
    """Files below some folders, or among them, that hold one of these secrets; which one is not repeated."""
    sought, found = [secret.encode() for secret in secrets], []
    for folder in folders:
        for file in [folder, *folder.rglob("*")]:
            if file.is_file() and any(secret in file.read_bytes() for secret in sought):
                found.append(str(file))
    return found
