"""Runs the migrations; Alembic loads this file by its path and expects it to do so on import."""

from alembic import context

from prospect.serving.store.migrations import VERSION_TABLE
from prospect.serving.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
)
context.run_migrations()
