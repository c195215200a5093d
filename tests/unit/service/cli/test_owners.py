"""What commands say of owners, limits, sweeps that will not run, and keys of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.fakes.api import FakeApi, Reply, problem, schedule_json, study_json


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "study.yaml").write_text("name: tone\n")
    return str(tmp_path / "study.yaml")


def test_a_submission_is_sent_again_with_the_same_key(run: Any, file: str) -> None:
    lost: list[Reply] = [httpx.ReadError("reset"), httpx.Response(201, json=study_json())]
    api = FakeApi({"POST /v1/studies": lost})
    result = run(api, "submit", file)
    assert (result.exit_code, "Study tone submitted" in result.stdout) == (0, True)
    first, again = (request.headers["Idempotency-Key"] for request in api.requests)
    assert first == again


def test_a_script_gives_its_own_key(run: Any, file: str) -> None:
    api = FakeApi({"POST /v1/studies": httpx.Response(201, json=study_json())})
    assert run(api, "submit", file, "--idempotency-key", "night-1").exit_code == 0
    assert api.requests[0].headers["Idempotency-Key"] == "night-1"


@pytest.mark.parametrize("key", ["a\nb: c", "é"])
def test_what_no_header_can_carry_is_no_key(run: Any, file: str, key: str) -> None:
    api = FakeApi({})
    result = run(api, "submit", file, "--idempotency-key", key)
    assert (result.exit_code, api.requests) == (2, [])
    assert "--idempotency-key" in result.stderr


def test_a_limit_is_said_in_full(run: Any, file: str) -> None:
    detail = "'alice' has 2 studies queued, running or paused, and this server allows 2."
    fault = {
        "path": "limits.max_active_studies_per_owner",
        "value": 3,
        "message": "is over the limit",
        "allowed": "at most 2",
    }
    api = FakeApi({"POST /v1/studies": problem(429, "Limit reached", detail, [fault])})
    result = run(api, "submit", file)
    assert result.exit_code == 1
    assert detail in result.stderr
    assert "(got 3; allowed: at most 2)" in result.stderr


@pytest.mark.parametrize(
    ("sweep", "line"),
    [
        (None, "Last sweep    -"),
        (
            {"name": "nightly-1", "state": "failed", "reason": "over its owner's limits: 2 of 2"},
            "Last sweep    nightly-1 failed: over its owner's limits: 2 of 2",
        ),
        ({"name": "nightly-1", "state": "queued", "reason": ""}, "Last sweep    nightly-1 queued"),
    ],
)
def test_a_schedule_shows_what_became_of_its_last_sweep(
    run: Any, sweep: dict[str, str] | None, line: str
) -> None:
    answer = httpx.Response(200, json=schedule_json(last_sweep=sweep))
    lines = run(FakeApi({"GET /v1/schedules/nightly": answer}), "schedules", "show", "nightly").stdout
    assert f"  {line}\n" in lines
    assert "  Owner         alice\n" in lines


def test_a_study_shows_its_owner(run: Any) -> None:
    api = FakeApi({"GET /v1/studies/tone": httpx.Response(200, json=study_json(owner="alice"))})
    assert "owner       alice\n" in run(api, "show", "tone").stdout
