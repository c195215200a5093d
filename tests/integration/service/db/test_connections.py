"""How long connections wait, and who says so."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.engine import make_url

from service.db import connections, database
from service.optuna_store.storage import close_storage, open_storage
from service.settings import Settings


def shown(engine: Engine, name: str) -> Any:
    with engine.connect() as connection:
        return connection.scalar(text(f"SELECT current_setting('{name}')"))


def test_both_engines_on_postgresql_wait_no_longer_than_a_lease(
    migrated_postgres: str, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path, database_url=migrated_postgres, lease_seconds=12)
    opened, storage = database.open_database(settings), open_storage(settings)
    for engine, name in ((opened.engine, "nightsweep"), (storage.engine, "nightsweep-optuna")):
        assert shown(engine, "idle_in_transaction_session_timeout") == "12s"
        assert shown(engine, "lock_timeout") == "17s"
        assert shown(engine, "application_name") == name
    assert shown(storage.engine, "search_path") == "optuna"
    close_storage(storage)
    opened.dispose()


def test_readers_on_postgresql_open_each_connection_once_and_no_transaction(
    migrated_postgres: str, tmp_path: Path
) -> None:
    opened = database.open_database(Settings(home=tmp_path, database_url=migrated_postgres))
    connected: list[object] = []
    event.listen(opened.engine, "connect", lambda *given: connected.append(given))
    mine = text("SELECT state FROM pg_stat_activity WHERE pid = :pid")
    for _ in range(3):
        with ExitStack() as closing:
            sessions = [closing.enter_context(opened.read()) for _ in range(10)]
            pids = [session.scalar(text("SELECT pg_backend_pid()")) for session in sessions]
            assert len(set(pids)) == 10
            assert [sessions[0].scalar(mine, {"pid": pid}) for pid in pids[1:]] == ["idle"] * 9
    assert len(connected) == 10
    opened.dispose()


def test_what_the_url_says_wins(migrated_postgres: str, tmp_path: Path) -> None:
    url = make_url(migrated_postgres).update_query_dict(
        {"application_name": "mine", "options": "-clock_timeout=3s", "keepalives_idle": "7"}
    )
    settings = Settings(home=tmp_path, database_url=url.render_as_string(hide_password=False))
    engine = create_engine(
        settings.database_url,
        **connections.engine_options(settings.database_url, settings, application="nightsweep"),
    )
    assert shown(engine, "application_name") == "mine"
    assert shown(engine, "lock_timeout") == "3s"
    assert shown(engine, "idle_in_transaction_session_timeout") == "30s"
    with engine.connect() as connection:
        parameters = connection.connection.dbapi_connection.info.get_parameters()  # type: ignore[union-attr]
    assert (parameters["keepalives_idle"], parameters["keepalives_interval"]) == ("7", "5")
    engine.dispose()
