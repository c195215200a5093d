"""One portable file of both databases: made while the service runs, restored into an empty database.

It holds rows, not files of a database, so what SQLite gave PostgreSQL takes, and the other way round.
Adapters and checkpoints are not in it: they are files already.
"""

from __future__ import annotations

from service.maintenance.backup.restoring import restore
from service.maintenance.backup.saving import save

__all__ = ["restore", "save"]
