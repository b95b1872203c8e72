"""API keys, and whose a session is."""

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"


def upgrade() -> None:
    op.create_table(
        "prospect_keys",
        sa.Column("key_id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("revoked", sa.Double),
    )
    op.add_column("prospect_sessions", sa.Column("key_id", sa.Text))
    op.create_index("prospect_sessions_key", "prospect_sessions", ["key_id", "status"])
