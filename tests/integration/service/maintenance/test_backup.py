"""Backups: one file of both databases, whatever they are, and nothing that is not one is restored."""

from __future__ import annotations

import hashlib
import json
import stat
import threading
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from optuna.study import StudyDirection
from sqlalchemy import select, text, update
from sqlalchemy.exc import DBAPIError

from service.db import connections, database
from service.db.errors import is_transient
from service.db.models import EventRow, Study
from service.errors import BackupError, SchemaOutOfDate
from service.maintenance import backup, integrity, schema
from service.maintenance.backup import archive as archives
from service.maintenance.backup import sides
from service.optuna_store.storage import Storage
from service.optuna_store.studies import read_trials
from service.settings import Settings
from service.states import TERMINAL_STUDY_STATES
from tests.support.service.searches import GRID, rows_of, service_of

Make = Callable[..., Settings]
STUDIES = "service/studies.jsonl"


def is_empty(settings: Settings) -> bool:
    return not any(rows_of(settings).values())


@pytest.fixture
def saved(searched: Settings, tmp_path: Path) -> Path:
    path = tmp_path / "night.backup"
    backup.save(searched, path)
    return path


@pytest.mark.parametrize("target", ["sqlite", "postgresql"])
def test_every_row_comes_back_on_either_database(
    searched: Settings, saved: Path, make_empty: Make, target: str
) -> None:
    settings = make_empty(target)
    backup.restore(settings, saved)
    assert rows_of(settings) == rows_of(searched)
    assert integrity.find_violations(settings) == []


@pytest.mark.parametrize("target", ["sqlite", "postgresql"])
def test_a_restored_service_goes_on_where_it_was(
    settings: Settings, make_empty: Make, tmp_path: Path, target: str
) -> None:
    """In mid study: leases are free, numbers go on after the highest, the search ends as planned."""
    with service_of(settings) as service:
        service.submit(GRID)
        for _ in range(6):
            service.coordinator.round()
        backup.save(settings, tmp_path / "b")
        assert service.states() == {"grid": "running"}
    restored = make_empty(target)
    backup.restore(restored, tmp_path / "b")
    with service_of(restored) as service:
        with service.database.read() as session:
            assert session.scalars(select(Study.lease_owner)).all() == [None]
        service.submit({**GRID, "name": "later"})
        service.run()
        assert service.states() == {"grid": "completed", "later": "completed"}
        assert len(read_trials(service.storage, "grid")) == 4
    assert integrity.find_violations(restored) == []


def test_a_backup_of_a_running_service_is_of_one_moment(
    settings: Settings, make_empty: Make, tmp_path: Path
) -> None:
    """Whatever the coordinator is doing: the service's tables and Optuna's are never out of step."""
    done = threading.Event()
    paths: list[Path] = []
    trouble: list[BaseException] = []

    def save_again_and_again() -> None:
        try:
            while not done.is_set():
                path = tmp_path / f"{len(paths)}.backup"
                backup.save(settings, path)
                paths.append(path)
        except BaseException as error:  # a thread's error must reach the test
            trouble.append(error)
            raise

    with service_of(settings) as service:
        service.submit(GRID)
        saving = threading.Thread(target=save_again_and_again)
        saving.start()
        try:
            while not all(state in TERMINAL_STUDY_STATES for state in service.states().values()):
                service.coordinator.round()
        finally:
            done.set()
            saving.join(timeout=60)
    assert trouble == []
    assert len(paths) > 1
    for path in (paths[len(paths) // 3], paths[2 * len(paths) // 3]):
        restored = make_empty("sqlite")
        backup.restore(restored, path)
        assert integrity.find_violations(restored) == []


def test_a_backup_waits_for_those_who_are_writing(
    searched: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "SQLITE_BUSY_SECONDS", 0.01)
    opened = database.open_database(searched)
    writing = ExitStack()
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            writing.close()

    writing.enter_context(opened.write()).execute(update(Study).values(reason="being written"))
    monkeypatch.setattr("time.sleep", pause)
    backup.save(searched, tmp_path / "b")
    opened.dispose()
    assert len(pauses) == 2
    assert all(0.05 <= seconds <= 0.2 for seconds in pauses)


def test_a_backup_gives_up_on_writers_that_do_not_end(
    searched: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "SQLITE_BUSY_SECONDS", 0.01)
    monkeypatch.setattr(sides, "_LOCK_TRIES_SECONDS", 0.0)
    opened = database.open_database(searched)
    with opened.write() as session:
        session.execute(update(Study).values(reason="being written"))
        with pytest.raises(DBAPIError) as raised:
            backup.save(searched, tmp_path / "b")
    opened.dispose()
    assert is_transient(raised.value)
    assert not (tmp_path / "b").exists()


def test_a_backup_is_its_owners_alone_and_replaces_nothing(searched: Settings, saved: Path) -> None:
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    with pytest.raises(BackupError, match="already exists; a backup never replaces a file"):
        backup.save(searched, saved)
    assert [path.name for path in saved.parent.glob("*night.backup*")] == ["night.backup"]


def test_a_place_that_is_not_there_is_named(searched: Settings, tmp_path: Path) -> None:
    with pytest.raises(BackupError, match=r"gone/b cannot be written: the folder .*gone does not exist$"):
        backup.save(searched, tmp_path / "gone" / "b")
    with pytest.raises(BackupError, match=r"gone/b cannot be read: No such file or directory$"):
        backup.restore(searched, tmp_path / "gone" / "b")


def test_a_backup_that_fails_leaves_no_file(
    searched: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archives.Writer, "add", fail)
    (tmp_path / "backups").mkdir()
    with pytest.raises(OSError, match="No space left"):
        backup.save(searched, tmp_path / "backups" / "b")
    assert list((tmp_path / "backups").iterdir()) == []


def test_whatever_is_stored_can_be_restored(settings: Settings, make_empty: Make, tmp_path: Path) -> None:
    """Texts that an older version accepted, which compress to a thousandth."""
    opened = database.open_database(settings)
    with opened.write() as session:
        for name in ("one", "two"):
            study = Study(id=name, name=name, definition={"data": {"columns": {"prompt": "a" * 900_000}}})
            session.add(study)
            session.flush()
            session.add(EventRow(study_id=name, kind="note", message="b" * 5_000_000))
    opened.dispose()
    backup.save(settings, tmp_path / "b")
    restored = make_empty("sqlite")
    backup.restore(restored, tmp_path / "b")
    assert rows_of(restored) == rows_of(settings)


def test_no_row_is_too_long_for_the_reader(tmp_path: Path) -> None:
    rows = [["a" * (65 << 20)], ["b"]]
    with (tmp_path / "b").open("wb") as file, archives.Writer(file) as writer:
        writer.add("service/one.jsonl", ["text"], rows)
        writer.finish(made_by="1", made_at="now", revisions={})
    with archives.open_archive(tmp_path / "b") as archive:
        assert list(archive.rows("service/one.jsonl")) == rows


@pytest.mark.parametrize("damage", ["row", "number", "value"])
def test_a_backup_that_cannot_be_read_back_is_not_kept(
    searched: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """The file is read with the rules of a restore before it gets its name."""
    write = archives.Writer.add

    def add(writer: archives.Writer, name: str, columns: Any, rows: Any) -> None:
        rows = [list(row) for row in rows]
        if name == STUDIES and damage == "row":
            rows[0] = rows[0][:-1]
        if name == STUDIES and damage == "value":
            rows[0][list(columns).index("lease_number")] = "many"
        write(writer, name, columns, rows)
        if name == STUDIES and damage == "number":
            writer.members[name] = writer.members[name].model_copy(update={"rows": 7})

    monkeypatch.setattr(archives.Writer, "add", add)
    (tmp_path / "backups").mkdir()
    with pytest.raises(BackupError, match=r"/b was not written: the backup was read back, and it cannot be"):
        backup.save(searched, tmp_path / "backups" / "b")
    assert list((tmp_path / "backups").iterdir()) == []


def test_a_database_that_is_not_of_this_version_is_not_backed_up(empty_settings: Settings) -> None:
    empty_settings.home.mkdir(exist_ok=True)
    with pytest.raises(SchemaOutOfDate, match="Run `nightsweep db upgrade`"):
        backup.save(empty_settings, empty_settings.home / "b")


def test_a_database_with_rows_is_not_restored_into(searched: Settings, saved: Path) -> None:
    before = rows_of(searched)
    with pytest.raises(BackupError, match=r"is not empty: its table studies has 2 rows\. .* empty database"):
        backup.restore(searched, saved)
    assert rows_of(searched) == before


def test_a_database_with_rows_of_optunas_only_is_not_restored_into(
    settings: Settings, storage: Storage, tmp_path: Path
) -> None:
    backup.save(settings, tmp_path / "b")
    storage.create_new_study([StudyDirection.MINIMIZE], "by hand")
    with pytest.raises(BackupError, match="is not empty: its table studies has 1 row"):
        backup.restore(settings, tmp_path / "b")


# -- what is no backup -------------------------------------------------------------------------------


@pytest.fixture
def sqlite_backup(searched_sqlite: Path, tmp_path: Path) -> Path:
    path = tmp_path / "night.backup"
    backup.save(Settings(home=searched_sqlite), path)
    return path


def test_a_database_of_another_version_is_not_restored_into(
    settings: Settings, service_database: database.Database, sqlite_backup: Path
) -> None:
    with service_database.write() as session:
        session.execute(text(f"UPDATE {schema.VERSION_TABLE} SET version_num = '0001'"))
    try:
        with pytest.raises(SchemaOutOfDate, match="at revision 0001; this version needs"):
            backup.restore(settings, sqlite_backup)
    finally:
        with service_database.write() as session:
            newest = schema.newest_revision()
            session.execute(text(f"UPDATE {schema.VERSION_TABLE} SET version_num = '{newest}'"))


def refused(path: Path, make_empty: Make, match: str) -> None:
    """The file is refused, and nothing of it is in the database afterwards."""
    settings = make_empty("sqlite")
    schema.upgrade(settings)
    with pytest.raises(BackupError, match=match):
        backup.restore(settings, path)
    assert is_empty(settings)


def rewritten(path: Path, change: Callable[[dict[str, bytes], dict[str, Any]], None]) -> Path:
    """The archive with other members or another manifest; checksums are set right again."""
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    manifest = json.loads(members.pop(archives.MANIFEST))
    change(members, manifest)
    for name, member in manifest["members"].items():
        if name in members and member.get("sha256") != "wrong":
            content = members[name]
            member |= {"size": len(content), "rows": content.count(b"\n")}
            member["sha256"] = hashlib.sha256(content).hexdigest()
    new = path.with_suffix(".changed")
    with zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
        file.writestr(archives.MANIFEST, json.dumps(manifest))
    return new


def test_any_flipped_byte_is_noticed_or_means_nothing(sqlite_backup: Path, make_empty: Make) -> None:
    content = sqlite_backup.read_bytes()
    with archives.open_archive(sqlite_backup) as whole:
        expected = {name: list(whole.rows(name)) for name in whole.manifest.members}
    damaged = sqlite_backup.with_suffix(".damaged")
    noticed = 0
    for place in range(0, len(content), max(1, len(content) // 300)):
        damaged.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            with archives.open_archive(damaged) as opened:
                assert {name: list(opened.rows(name)) for name in opened.manifest.members} == expected
        except BackupError:
            noticed += 1
    assert noticed > 200


def test_a_file_cut_short_is_refused(sqlite_backup: Path, make_empty: Make) -> None:
    content = sqlite_backup.read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 1):
        sqlite_backup.write_bytes(content[:length])
        refused(sqlite_backup, make_empty, "is not a backup, or is damaged")


def _other_revision(members: dict[str, bytes], manifest: dict[str, Any]) -> None:
    manifest["revisions"]["service"] = "0002"


def _other_format(members: dict[str, bytes], manifest: dict[str, Any]) -> None:
    manifest["format"] = 2


def _outside(members: dict[str, bytes], manifest: dict[str, Any]) -> None:
    members["../../outside"] = b"x"


def _listed_outside(members: dict[str, bytes], manifest: dict[str, Any]) -> None:
    _outside(members, manifest)
    manifest["members"]["../../outside"] = {"columns": [], "rows": 0, "size": 0, "sha256": ""}


def _missing(members: dict[str, bytes], manifest: dict[str, Any]) -> None:
    del members[STUDIES]


def _unlisted(members: dict[str, bytes], manifest: dict[str, Any]) -> None:
    del members[STUDIES], manifest["members"][STUDIES]


def _wrong_sum(members: dict[str, bytes], manifest: dict[str, Any]) -> None:
    manifest["members"][STUDIES]["sha256"] = "wrong"


def _strange_manifest(members: dict[str, bytes], manifest: dict[str, Any]) -> None:
    manifest["run"] = "rm"


def _deep(members: dict[str, bytes], manifest: dict[str, Any]) -> None:
    members[STUDIES] = b"[" * 200_000 + b"]" * 200_000 + b"\n"


def _not_a_number(members: dict[str, bytes], manifest: dict[str, Any]) -> None:
    members[STUDIES] = members[STUDIES].replace(b"null", b"NaN", 1)


def _too_short(members: dict[str, bytes], manifest: dict[str, Any]) -> None:
    members[STUDIES] = b'["a"]\n'


def _cell(column: str, value: Any) -> Callable[[dict[str, bytes], dict[str, Any]], None]:
    def change(members: dict[str, bytes], manifest: dict[str, Any]) -> None:
        rows = [json.loads(line) for line in members[STUDIES].splitlines()]
        rows[0][manifest["members"][STUDIES]["columns"].index(column)] = value
        members[STUDIES] = b"".join(json.dumps(row).encode() + b"\n" for row in rows)

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_other_revision, r"made it at the revisions .*service 0002, this version has .*service \d{4}"),
        (_other_format, r"it has the format 2, .* this version reads format 1"),
        (_outside, r"its members differ from its manifest\.json: '\.\./\.\./outside'"),
        (_listed_outside, r"its tables differ from this version's: \['\.\./\.\./outside'\]"),
        (_missing, "its members differ from its manifest"),
        (_unlisted, r"its tables differ from this version's: \['service/studies\.jsonl'\]"),
        (_wrong_sum, "is damaged: its checksum is not the one in the manifest"),
        (_strange_manifest, "its manifest.json is not a valid manifest"),
        (_deep, "line 1 of service/studies.jsonl is not JSON"),
        (_not_a_number, "line 1 of service/studies.jsonl is not JSON"),
        (_too_short, r"line 1 of service/studies.jsonl is not a row of \d+ columns"),
        (_cell("lease_number", "many"), "lease_number has a value that is not of type integer: 'many'"),
        (_cell("lease_number", 2**70), "lease_number has a value that is not of type integer"),
        (_cell("created_at", "2026-01-01T00:00:00"), "created_at has a value that is not of type datetime"),
        (_cell("cancel_requested", 1), "cancel_requested has a value that is not of type boolean"),
        (_cell("name", None), "name must not be null"),
        (_cell("state", "sleeping"), "CHECK constraint failed"),
        (_cell("range_test_id", "gone"), "FOREIGN KEY constraint failed"),
    ],
)
def test_what_is_no_backup_of_this_version_is_refused(
    sqlite_backup: Path, make_empty: Make, change: Callable[..., None], match: str
) -> None:
    refused(rewritten(sqlite_backup, change), make_empty, match)


def test_a_member_that_is_there_twice_is_refused(sqlite_backup: Path, make_empty: Make) -> None:
    with (
        pytest.warns(UserWarning, match="Duplicate name"),
        zipfile.ZipFile(sqlite_backup, "a") as file,
    ):
        file.writestr(STUDIES, b"")
    refused(sqlite_backup, make_empty, r"it has \d+ members, of which \d+ have different names")


def test_a_refused_restore_can_be_followed_by_a_right_one(
    searched_sqlite: Path, sqlite_backup: Path, make_empty: Make
) -> None:
    settings = make_empty("postgresql")
    with pytest.raises(BackupError, match="violates check constraint"):
        backup.restore(settings, rewritten(sqlite_backup, _cell("state", "sleeping")))
    backup.restore(settings, sqlite_backup)
    assert rows_of(settings) == rows_of(Settings(home=searched_sqlite))


def test_numbers_go_on_after_those_restored(sqlite_backup: Path, make_empty: Make) -> None:
    settings = make_empty("postgresql")
    backup.restore(settings, sqlite_backup)
    opened = database.open_database(settings)
    with opened.write() as session:
        highest = max(session.scalars(select(EventRow.id)))
        event = EventRow(kind="note", message="first after the restore")
        session.add(event)
        session.flush()
        assert event.id == highest + 1
    opened.dispose()
