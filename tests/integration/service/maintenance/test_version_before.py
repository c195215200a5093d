"""A home folder of the version before: its databases are upgraded, checked and read."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from starlette.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from tests.support.service.api import LOCAL
from tests.support.version_before import WRITTEN_AT, VersionBefore, read_json

ANSWERS: dict[str, dict[str, Any]] = read_json("answers.json")
"""By path, what the version before answered."""
OF_NOW = frozenset({"made_at", "seconds", "worker_hours", "reason"})
"""Keys of studies that have not ended: time goes on for them, and nobody trains them now."""


@pytest.fixture
def version_before(tmp_path: Path) -> VersionBefore:
    """Its home folder with upgraded databases."""
    unpacked = VersionBefore.unpacked(tmp_path)
    upgraded = unpacked.nightsweep("db", "upgrade")
    assert upgraded.exit_code == 0, upgraded.output
    return unpacked


def differences(before: Any, now: Any, where: str = "") -> list[str]:
    """What of an answer has changed: not further keys, nor the words of a sentence."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            found
            for key in before.keys() - OF_NOW
            for found in differences(before[key], now.get(key, "missing"), f"{where}.{key}")
        ]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return [found for i, (one, other) in pairs for found in differences(one, other, f"{where}[{i}]")]
    if isinstance(before, str) and isinstance(now, str) and " " in before and " " in now:
        return []
    return [] if before == now else [f"{where}: {before!r} became {now!r}"]


def test_its_databases_are_upgraded_and_found_whole(version_before: VersionBefore) -> None:
    checked = version_before.nightsweep("db", "check")
    assert checked.exit_code == 0, checked.output
    assert checked.stdout.endswith("rules were checked, 0 violations found.\n")


def test_every_read_of_the_api_answers_as_before(version_before: VersionBefore) -> None:
    settings = Settings(home=version_before.home, submission_check_seconds=0)
    changed: list[str] = []
    with TestClient(create_app(settings), base_url=LOCAL, headers=version_before.headers) as client:
        for path, before in ANSWERS.items():
            answer = client.get(path)
            assert answer.status_code == before["status"], (path, answer.text)
            if before["status"] == 200:
                changed += differences(before["body"], answer.json(), path)
    assert changed == []


def test_an_adapter_that_it_saved_is_given_out(version_before: VersionBefore) -> None:
    best = ANSWERS["/v1/studies/grid/best"]["body"]
    engine = create_engine(f"sqlite:///{version_before.home / 'nightsweep.db'}")
    with engine.begin() as connection:
        moved = text("UPDATE attempts SET outcome = replace(outcome, :before, :now)")
        connection.execute(moved, {"before": WRITTEN_AT, "now": str(version_before.folder)})
    engine.dispose()
    settings = Settings(home=version_before.home, submission_check_seconds=0)
    with TestClient(create_app(settings), base_url=LOCAL, headers=version_before.headers) as client:
        answer = client.get(best["adapter"]["url"])
    assert answer.status_code == 200, answer.text
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert {"adapter_config.json", "adapter_model.safetensors"} <= set(archive.namelist())
