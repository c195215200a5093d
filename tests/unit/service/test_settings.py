"""Settings: defaults, what follows from what, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings, unknown_variables


@pytest.fixture(autouse=True)
def _no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("NIGHTSWEEP_"):
            monkeypatch.delenv(name)


def test_everything_embedded_lives_in_the_home_folder(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    assert settings.database_url == f"sqlite:///{tmp_path}/nightsweep.db"
    assert settings.optuna_url == f"sqlite:///{tmp_path}/optuna.db"
    assert settings.artifacts_dir == tmp_path / "artifacts"


def test_the_home_folder_is_that_of_the_user_by_default() -> None:
    assert Settings().home == Path.home() / ".nightsweep"


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NIGHTSWEEP_HOME", str(tmp_path))
    monkeypatch.setenv("NIGHTSWEEP_PORT", "9000")
    monkeypatch.setenv("NIGHTSWEEP_DATA_ROOTS", os.pathsep.join([str(tmp_path / "a"), str(tmp_path / "b")]))
    monkeypatch.setenv("NIGHTSWEEP_LOG_LEVEL", "debug")
    monkeypatch.setenv("NIGHTSWEEP_API_KEY", "")
    settings = Settings()
    assert (settings.home, settings.port, settings.log_level) == (tmp_path, 9000, "DEBUG")
    assert settings.data_roots == (tmp_path / "a", tmp_path / "b")
    assert settings.api_key is None


def test_data_roots_are_resolved_and_are_the_working_folder_by_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert Settings(data_roots=str(tmp_path / "link")).data_roots == (tmp_path / "real",)
    monkeypatch.chdir(tmp_path / "real")
    assert Settings().data_roots == (tmp_path / "real",)


def test_new_attempts_have_their_folders_behind_the_url_where_there_is_one(tmp_path: Path) -> None:
    assert Settings(home=tmp_path).artifacts_root == str(tmp_path / "artifacts")
    settings = Settings(home=tmp_path, artifacts_url="s3://bucket/nightsweep/")
    assert settings.artifacts_root == "s3://bucket/nightsweep"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("/mnt/artifacts", "not a URL"),
        ("s3://key:secret@bucket/x", "contains a password"),
        ("s3://bucket/../x", "must be a plain URL"),
        ("s3://bucket/x\n", "must be a plain URL"),
        ("s3://", "must name a bucket or folder"),
        ("file:///", "must name a bucket or folder"),
        ("file://srv/nightsweep", "must be an absolute path"),
    ],
)
def test_a_url_for_artifacts_is_plain_and_holds_no_password(url: str, says: str) -> None:
    with pytest.raises(ValidationError, match=f"artifacts_url\n.*{says}"):
        Settings(artifacts_url=url)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_postgresql_goes_through_psycopg_with_optuna_in_its_own_schema(tmp_path: Path, scheme: str) -> None:
    settings = Settings(home=tmp_path, database_url=f"{scheme}://me:p%40ss@db:5432/night")
    assert settings.database_url == "postgresql+psycopg://me:p%40ss@db:5432/night"
    assert settings.optuna_url == f"{settings.database_url}?options=-csearch_path%3Doptuna"


def test_options_that_the_url_has_are_kept(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, database_url="postgresql://db/night?options=-cwork_mem%3D8MB")
    assert settings.optuna_url.endswith("?options=-cwork_mem%3D8MB+-csearch_path%3Doptuna")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("database_url", "mysql://db/night", "expected sqlite or postgresql"),
        ("database_url", "night", "not a database URL"),
        ("database_url", "sqlite://", "must be a SQLite file"),
        ("database_url", "sqlite:///:memory:", "must be a SQLite file"),
        ("port", "70000", "less than or equal to 65535"),
        ("port", "0", "greater than or equal to 1"),
        ("data_roots", "", "at least one folder"),
        ("lease_seconds", "0", "greater than 0"),
    ],
)
def test_a_wrong_setting_says_what_is_expected(tmp_path: Path, name: str, value: str, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Settings(home=tmp_path, **{name: value})  # type: ignore[arg-type]


def test_the_key_is_not_printed(tmp_path: Path) -> None:
    assert "horse" not in repr(Settings(home=tmp_path, api_key="correct horse"))  # type: ignore[arg-type]


def test_variables_that_are_no_settings_are_found_with_what_was_meant() -> None:
    environment = {
        "NIGHTSWEEP_HOME": "/home",
        "nightsweep_port": "8787",
        "NIGHTSWEEP_SERVER": "http://elsewhere",
        "NIGHTSWEEP_ORPHAN_TIMEOUT": "60",
        "NIGHTSWEEP_LEASE": "4",
        "NIGHTSWEEP_ARTEFACTS_DIR": "/artifacts",
        "NIGHTSWEEP_COLOUR": "blue",
        "NIGHTSWEEP_EMPTY": "",
        "PATH": "/bin",
    }
    assert unknown_variables(environment) == {
        "NIGHTSWEEP_ARTEFACTS_DIR": "NIGHTSWEEP_ARTIFACTS_DIR",
        "NIGHTSWEEP_COLOUR": None,
        "NIGHTSWEEP_LEASE": "NIGHTSWEEP_LEASE_SECONDS",
        "NIGHTSWEEP_ORPHAN_TIMEOUT": "NIGHTSWEEP_ORPHAN_TIMEOUT_SECONDS",
    }


@pytest.mark.parametrize(
    "address", ["head-node:6379", "127.0.0.1:6379", "[::1]:6379", "ray_head.x:1", "auto"]
)
def test_a_cluster_is_named_by_the_address_of_its_head(address: str) -> None:
    assert Settings(ray_address=address).ray_address == address


@pytest.mark.parametrize(
    "address",
    [
        "head-node",
        "head-node:",
        ":6379",
        "head-node:0",
        "head-node:65536",
        "head-node:port",
        "ray://head-node:10001",
        "http://head-node:8265",
        "::1:6379",
        "head node:6379",
        "local",
    ],
)
def test_what_is_not_the_address_of_a_head_is_refused(address: str) -> None:
    with pytest.raises(ValidationError, match="expected host:port, such as head-node:6379"):
        Settings(ray_address=address)
