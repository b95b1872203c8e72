"""Bring a database to the schema of this version, with Alembic.

A change of `schema.py` comes with a new module in `versions/`.
"""

import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

VERSION_TABLE = "prospect_store_version"
"""Not Alembic's default, which is MLflow's in a database of both."""

_one_at_a_time = threading.Lock()
"""Alembic keeps the migration that runs in a global variable."""


class NewerSchemaError(Exception):
    """The database was migrated to a schema that this version does not know."""


def is_current(connection: Connection) -> bool:
    """Whether the database has the schema of this version.

    Raises:
        NewerSchemaError: it has a later one.
    """
    scripts = ScriptDirectory.from_config(_config())
    found = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_heads()
    unknown = set(found) - {script.revision for script in scripts.walk_revisions()}
    if unknown:
        raise NewerSchemaError(", ".join(sorted(unknown)))
    return set(found) == set(scripts.get_heads())


def migrate(connection: Connection) -> None:
    """Bring the database to the schema of this version, within the connection's transaction."""
    config = _config()
    config.attributes["connection"] = connection
    with _one_at_a_time:
        command.upgrade(config, "head")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config
