"""One portable file of both databases: made while the service runs, restored into an empty database.

It contains rows and not a database's files, so a backup of SQLite can be restored into PostgreSQL and the
other way round. It does not contain adapters and checkpoints, which are files already.
"""

from __future__ import annotations

from service.maintenance.backup.restoring import restore
from service.maintenance.backup.saving import save

__all__ = ["restore", "save"]
