"""What each replica does for its operator: writes its log, and exports its readings."""

import asyncio
import logging
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ray import serve

from prospect.cluster.exporter import Exporter
from prospect.monitoring import Readings
from prospect.serving.logs import about, write_logs

log = logging.getLogger(__name__)

EXPORTED_EVERY_S = 2.0
"""Seconds between two exports; Ray's own agent takes them every ten."""

_exporting: set[asyncio.Task[None]] = set()


class Measured(Protocol):
    """What a replica does its work with."""

    readings: Readings

    async def measure(self) -> None:
        """Note in the readings how it is now."""


M = TypeVar("M", bound=Measured)


def observe_replica(measured: M, **facts: Any) -> M:
    """Begin to write and export, in the replica's event loop and until its process ends; returns what was given.

    Args:
        measured: of this replica.
        facts: names and numbers for the log's first line.
    """
    replica = serve.get_replica_context().replica_id
    process = replica.deployment_id.name.lower()
    write_logs(process, f"prospect_{process}_{replica.unique_id}.jsonl", log_folder())
    log.info("started", extra=about("process.started", replica=replica.unique_id, **facts))
    _exporting.add(asyncio.create_task(_export(measured)))
    return measured


def log_folder() -> Path | None:
    """Where Serve writes this replica's own log; None where it is told to write no file."""
    for handler in logging.getLogger("ray.serve").handlers:
        file = getattr(handler, "target", handler)  # Serve may buffer what it writes
        if isinstance(file, logging.FileHandler):
            return Path(file.baseFilename).parent
    return None


async def _export(measured: Measured) -> None:
    exporter = Exporter()
    while True:
        await asyncio.sleep(EXPORTED_EVERY_S)
        try:
            await measured.measure()
            exporter.export(measured.readings)
        except Exception:  # it is tried again; a replica does not end for want of numbers
            log.exception("exporting metrics", extra=about("export.failed"))
