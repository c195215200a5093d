"""`nightsweep champion`: who it is, what was decided, and what is done by hand."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.fakes.api import FakeApi, problem

PATH = "/v1/schedules/nightly/champion"
REIGN: dict[str, Any] = {
    "id": 2,
    "study": "nightly-20260102-0230",
    "study_id": "5" * 32,
    "trial": 3,
    "adapter": "/home/a/3/1/best",
    "since": "2026-01-02T03:00:00Z",
    "until": None,
    "why": "trial 3 of nightly-20260102-0230 takes the place of trial 1 of nightly-20260101-0230",
    "ended_why": None,
    "promoted_by": None,
    "lineage": {
        "task": "causal_lm",
        "model": {"id": "org/base", "revision": None},
        "recipe": {"lora_r": 8, "quantization": "nf4"},
        "seed": 42,
        "fingerprints": {"data.eval": "sha256:e"},
        "versions": {"torch": "2.13.0"},
    },
}
CONTEST: dict[str, Any] = {
    "id": 7,
    "at": "2026-01-02T03:00:00Z",
    "study": "nightly-20260102-0230",
    "study_id": "5" * 32,
    "decision": "dethroned",
    "why": "eval_loss 0.812 instead of 0.845 on 200 rows: better by 0.033",
    "metric": "eval_loss",
    "champion_value": 0.845,
    "challenger_trial": 3,
    "challenger_value": 0.812,
    "data": "d" * 64,
    "data_changed": True,
    "evidence": None,
}
CHAMPION = {
    **REIGN,
    "schedule": "nightly",
    "url": f"{PATH}/adapter",
    "last_contest": CONTEST,
    "rollbacks": [{**REIGN, "id": 1, "study": "nightly-20260101-0230", "trial": 1}],
}


def replies(method: str = "GET", path: str = PATH, body: Any = CHAMPION) -> FakeApi:
    return FakeApi({f"{method} {path}": httpx.Response(200, json=body)})


def test_the_champion_is_shown_with_its_lineage(run: Any) -> None:
    result = run(replies(), "champion", "nightly")
    assert result.exit_code == 0
    for said in (
        "Champion of nightly: trial 3 of nightly-20260102-0230",
        "dethroned; eval_loss 0.812 instead of 0.845 on 200 rows: better by 0.033",
        "dddddddddddd, changed",
        "org/base (nf4)",
        "lora_r=8, quantization=nf4",
        "data.eval=sha256:e",
        "torch=2.13.0",
        "trial 1 of nightly-20260101-0230",
        "nightsweep champion nightly --download DIR",
    ):
        assert said in result.stdout


def test_as_json_it_is_what_the_server_sent(run: Any) -> None:
    assert httpx.Response(200, text=run(replies(), "champion", "nightly", "--json").stdout).json() == CHAMPION


def test_a_schedule_without_one_exits_1(run: Any) -> None:
    api = FakeApi({f"GET {PATH}": problem(404, "Not found", "The schedule 'nightly' has no champion yet.")})
    result = run(api, "champion", "nightly")
    assert (result.exit_code, "has no champion yet" in result.stderr) == (1, True)


def test_the_history_has_contests_and_reigns(run: Any) -> None:
    body = {"contests": [CONTEST], "reigns": [REIGN]}
    result = run(replies(path=f"{PATH}/history", body=body), "champion", "nightly", "--history")
    for said in ("dethroned", "0.845", "0.812 (trial 3)", "changed", "trial 3 of nightly-20260102-0230"):
        assert said in result.stdout
    empty = {"contests": [], "reigns": []}
    result = run(replies(path=f"{PATH}/history", body=empty), "champion", "nightly", "--history")
    assert result.stdout == "No sweep has decided anything yet.\n"


def test_a_trial_is_promoted_and_a_champion_rolled_back(run: Any) -> None:
    api = replies("POST")
    assert run(api, "champion", "nightly", "--promote", "support/tone/7").exit_code == 0
    assert api.body() == {"study": "support/tone", "trial": 7}
    api = replies("POST", f"{PATH}/rollback")
    assert run(api, "champion", "nightly", "--rollback").exit_code == 0


@pytest.mark.parametrize("trial", ["tone", "tone/", "/7", "tone/x", "tone/-1", "tone/99999999999"])
def test_a_trial_that_is_none_is_refused(run: Any, trial: str) -> None:
    result = run(replies(), "champion", "nightly", "--promote", trial)
    assert (result.exit_code, "expected STUDY/TRIAL" in result.stderr) == (2, True)


def test_only_one_thing_is_done_at_a_time(run: Any) -> None:
    result = run(replies(), "champion", "nightly", "--rollback", "--history")
    assert (result.exit_code, "choose one of" in result.stderr) == (2, True)


def test_its_adapter_lands_in_a_new_folder(run: Any, tmp_path: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as files:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            files.writestr(name, "{}")
    folder = tmp_path / "champion"

    def download() -> Any:
        api = FakeApi({f"GET {PATH}/adapter": httpx.Response(200, content=archive.getvalue())})
        return run(api, "champion", "nightly", "--download", str(folder))

    assert (download().stdout, sorted(file.name for file in folder.iterdir())) == (
        f"{folder}\n",
        ["adapter_config.json", "adapter_model.safetensors"],
    )
    assert "already exists; choose another folder" in download().stderr
