"""Sessions, their durable messages and their frames."""

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "prospect_sessions",
        sa.Column("session_id", sa.Text, primary_key=True),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("engine", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("opened", sa.Text, nullable=False),
        sa.Column("tokens", sa.Text, nullable=False),
        sa.Column("position", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("mark", sa.Text),
        sa.Column("base", sa.LargeBinary),
        sa.Column("last_event", sa.BigInteger, nullable=False),
        sa.Column("touched", sa.Double, nullable=False),
    )
    op.create_index("prospect_sessions_owner", "prospect_sessions", ["owner", "status"])
    op.create_index("prospect_sessions_touched", "prospect_sessions", ["status", "touched"])
    op.create_table(
        "prospect_events",
        _session_id(),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("source", sa.BigInteger),
        sa.Column("payload", sa.Text, nullable=False),
    )
    op.create_table(
        "prospect_frames",
        _session_id(),
        sa.Column("frame", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("events", sa.Text, nullable=False),
        sa.Column("embedding", sa.LargeBinary),
        sa.Column("number", sa.BigInteger),
        sa.Column("decision", sa.Text),
    )


def _session_id() -> sa.Column[str]:
    of = sa.ForeignKey("prospect_sessions.session_id", ondelete="CASCADE")
    return sa.Column("session_id", sa.Text, of, primary_key=True)
