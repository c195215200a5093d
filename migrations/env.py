"""How Alembic runs the service's migrations: in-process, on the connection that `db upgrade` holds."""

from __future__ import annotations

from alembic import context

from service.db.models import Base
from service.maintenance.schema import VERSION_TABLE

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,  # SQLite cannot alter a table in place
)
with context.begin_transaction():
    context.run_migrations()
