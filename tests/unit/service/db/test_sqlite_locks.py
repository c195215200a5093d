"""Nothing in a process takes away the locks by which SQLite knows that the process has a file open."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sqlalchemy import select

from service.db import database
from service.db.models import Study
from service.maintenance import schema
from service.optuna_store.storage import close_storage, open_storage
from service.settings import Settings

ANOTHER_PROCESS = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("UPDATE studies SET reason = 'from elsewhere'")
connection.close()
"""


def test_what_another_process_writes_is_seen_and_its_end_leaves_the_log(tmp_path: Path) -> None:
    """Without our locks it would take itself for the last one and delete the log that we go on using."""
    settings = Settings(home=tmp_path)
    schema.upgrade(settings)
    ours = database.open_database(settings)
    with ours.write() as session:
        session.add(Study(id="a" * 32, name="a", definition={}))
    storage = open_storage(settings)  # as the API and the coordinator do, second
    try:
        subprocess.run([sys.executable, "-c", ANOTHER_PROCESS, str(tmp_path / "nightsweep.db")], check=True)
        assert (tmp_path / "nightsweep.db-shm").exists()
        with ours.read() as session:
            assert session.scalars(select(Study.reason)).all() == ["from elsewhere"]
    finally:
        close_storage(storage)
        ours.dispose()
