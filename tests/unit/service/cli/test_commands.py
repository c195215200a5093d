"""The commands against scripted answers: what they print, where, and how they exit.

One file for all commands, since they share one scripted server and one way of being run.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from service.cli.root import app
from tests.support.fakes.api import (
    FakeApi,
    Reply,
    best_json,
    event_json,
    problem,
    refused,
    schedule_json,
    study_json,
    trial_json,
)

SERVER = "http://sweeps.example"


def study(**changes: Any) -> httpx.Response:
    return httpx.Response(200, json=study_json(**changes))


def items(*documents: dict[str, Any]) -> httpx.Response:
    return httpx.Response(200, json={"items": list(documents), "next_cursor": None})


TRIALS = f"GET /v1/studies/{'5' * 32}/trials"
SCHEDULE = schedule_json(timezone="Europe/Berlin", next_fire_at="2026-07-01T20:00:00Z")
HISTORY = {
    "id": 1,
    "at": "2026-07-01T22:00:00Z",
    "schedule": "nightly",
    "schedule_id": SCHEDULE["id"],
    "kind": "changed",
    "asked_by": None,
    "message": "m",
    "changes": None,
    "fired_for": None,
}
"""An event of a schedule."""
SPACE = {
    "name": "qlora-quick",
    "description": "Two dials.",
    "parameters": {"learning_rate": {"type": "float", "min": 1e-5, "max": 1e-3, "scale": "log"}},
    "recipe": {"lora_r": 16},
    "sources": {"learning_rate": "QLoRA, table 9"},
}
READS: dict[str, tuple[list[str], dict[str, Reply | list[Reply]], Any]] = {
    "studies": (["studies"], {"GET /v1/studies": items(study_json())}, [study_json()]),
    "show": (["show", "tone"], {"GET /v1/studies/tone": study()}, study_json()),
    "watch": (
        ["watch", "tone"],
        {
            "GET /v1/studies/tone": study(),
            f"GET /v1/studies/{'5' * 32}": study(state="completed"),
            TRIALS: items(trial_json(0)),
        },
        study_json(state="completed"),
    ),
    "trials": (
        ["trials", "tone"],
        {"GET /v1/studies/tone": study(), TRIALS: items(trial_json(0))},
        [trial_json(0)],
    ),
    "best": (
        ["best", "tone"],
        {
            "GET /v1/studies/tone/best": httpx.Response(200, json=best_json(0)),
            "GET /v1/studies/tone": study(),
        },
        best_json(0),
    ),
    "events": (
        ["events", "tone"],
        {
            "GET /v1/studies/tone/events": [
                items(event_json(1)),
                items(),
            ]
        },
        [event_json(1)],
    ),
    "schedules list": (["schedules", "list"], {"GET /v1/schedules": items(SCHEDULE)}, [SCHEDULE]),
    "schedules show": (
        ["schedules", "show", "nightly"],
        {"GET /v1/schedules/nightly": httpx.Response(200, json=SCHEDULE)},
        SCHEDULE,
    ),
    "search-spaces": (["search-spaces"], {"GET /v1/search-spaces": items(SPACE)}, [SPACE]),
    "search-spaces NAME": (
        ["search-spaces", "qlora-quick"],
        {"GET /v1/search-spaces/qlora-quick": httpx.Response(200, json=SPACE)},
        SPACE,
    ),
}


@pytest.mark.parametrize("read", READS)
def test_every_read_prints_pure_json_when_asked(run: Any, read: str) -> None:
    arguments, replies, document = READS[read]
    result = run(replies, *arguments, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == document


@pytest.mark.parametrize("read", [read for read in READS if read != "watch"])
def test_every_read_prints_something_for_people_and_no_control_codes(run: Any, read: str) -> None:
    arguments, replies, document = READS[read]
    result = run(replies, *arguments)
    first = document[0] if isinstance(document, list) else document
    assert result.exit_code == 0
    assert str(first.get("name", first.get("number", first.get("message")))) in result.stdout
    assert "\x1b" not in result.output


def test_submit_sends_the_file_and_prints_id_name_and_addresses(run: Any, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("name: tone\nsearch: {trials: 3}\n")
    api = FakeApi({"POST /v1/studies": httpx.Response(201, json=study_json(dashboard_path=None))})
    result = run(api, "submit", str(tmp_path / "study.yaml"), "--name", "other")
    assert api.body() == {"name": "other", "search": {"trials": 3}}
    assert (
        "Study tone submitted\n"
        f"  Id          {'5' * 32}\n"
        "  Name        tone\n"
        f"  Report      {SERVER}/reports/studies/tone\n"
        f"  Dashboard   {SERVER}/dashboard\n"
        "Watch it with: nightsweep watch tone\n"
    ) == result.stdout


@pytest.mark.parametrize(("state", "exit_code"), [("completed", 0), ("failed", 1), ("cancelled", 1)])
def test_submit_watch_exits_by_how_the_study_ended_and_prints_the_summary(
    run: Any, tmp_path: Path, state: str, exit_code: int
) -> None:
    (tmp_path / "study.yaml").write_text("name: tone")
    trial = trial_json(0, value=0.412, adapter={"path": "/home/a/best", "url": "/v1/adapter"})
    result = run(
        {
            "POST /v1/studies": httpx.Response(201, json=study_json()),
            f"GET /v1/studies/{'5' * 32}": study(
                state=state,
                reason="all trials ended",
                counts={"completed": 1},
                ended_at="2026-07-01T22:02:15Z",
            ),
            TRIALS: items(trial),
        },
        "submit",
        str(tmp_path / "study.yaml"),
        "--watch",
    )
    assert result.exit_code == exit_code
    assert result.stdout.endswith(
        "\n"
        f"Study tone {state} in 2m 10s: all trials ended\n"
        "  Trials      1 completed\n"
        "  Best trial  0  eval_loss 0.412\n"
        "    learning_rate  0.000312\n"
        "    lora_r         8\n"
        "  Adapter     /home/a/best\n"
        f"  Dashboard   {SERVER}/dashboard/studies/3\n"
    )


def test_a_problem_is_printed_with_every_fault_and_exits_1(run: Any, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("name: tone")
    faults = [
        {
            "path": "serach",
            "value": {"trials": 1},
            "message": "is no key",
            "allowed": None,
            "nearest": "search",
        },
        {
            "path": "search.trials",
            "value": 0,
            "message": "must be positive",
            "allowed": ">= 1",
            "nearest": None,
        },
        {"path": "model.id", "value": None, "message": "is missing", "allowed": None, "nearest": None},
    ]
    result = run(
        {"POST /v1/studies": problem(422, "Invalid", "The definition has 3 faults.", faults)},
        "submit",
        str(tmp_path / "study.yaml"),
    )
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == (
        "Error: Invalid (422)\n"
        "The definition has 3 faults.\n"
        '  serach: is no key (got {"trials": 1}; did you mean search?)\n'
        "  search.trials: must be positive (got 0; allowed: >= 1)\n"
        "  model.id: is missing\n"
    )


@pytest.mark.parametrize(
    ("path", "value", "message", "allowed", "said"),
    [
        (
            "search.trials",
            "nan",
            "must be a finite number",
            "a finite number",
            'search.trials: must be a finite number (got "nan")',
        ),
        (  # a part of a longer name in the message
            "search.space.sgd_momentum.when.optimizer",
            ["sgd", "adamw"],
            "includes values of optimizer with which sgd_momentum has no effect",
            "sgd",
            'has no effect (got ["sgd", "adamw"]; allowed: sgd)',
        ),
    ],
)
def test_what_is_allowed_is_said_once(
    run: Any, tmp_path: Path, path: str, value: object, message: str, allowed: str, said: str
) -> None:
    (tmp_path / "study.yaml").write_text("name: tone")
    fault = {"path": path, "value": value, "message": message, "allowed": allowed, "nearest": None}
    result = run(
        {"POST /v1/studies": problem(422, "Invalid", "The definition has 1 fault.", [fault])},
        "submit",
        str(tmp_path / "study.yaml"),
    )
    assert result.stderr.endswith(f"{said}\n")


def test_a_long_list_of_names_is_said_once_and_not_where_a_name_is_near(run: Any, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("name: tone")
    fault = {"value": 1, "message": "unknown key", "allowed": "a_rather_long_name, " * 25, "nearest": None}
    faults = [
        fault | {"path": "recipe.lr", "nearest": "learning_rate"},
        fault | {"path": "recipe.foo"},
        fault | {"path": "recipe.bar"},
        fault | {"path": "search.algorithm", "allowed": "grid, tpe", "nearest": "tpe"},
    ]
    result = run(
        {"POST /v1/studies": problem(422, "Invalid", "The definition has 4 faults.", faults)},
        "submit",
        str(tmp_path / "study.yaml"),
    )
    assert result.stderr.splitlines()[2:] == [
        "  recipe.lr: unknown key (got 1; did you mean learning_rate?)",
        f"  recipe.foo: unknown key (got 1; allowed: {fault['allowed']})",
        "  recipe.bar: unknown key (got 1; allowed: the same as for recipe.foo)",
        "  search.algorithm: unknown key (got 1; allowed: grid, tpe; did you mean tpe?)",
    ]


def test_no_server_exits_3_and_says_what_to_do(run: Any) -> None:
    result = run({"GET /v1/studies": refused()}, "studies")
    assert result.exit_code == 3
    assert "no answer from a Nightsweep server at http://sweeps.example" in result.stderr
    assert "`nightsweep serve`" in result.stderr
    assert "--server" in result.stderr


def test_another_service_on_the_port_exits_3(run: Any) -> None:
    result = run({"GET /v1/studies": httpx.Response(200, text="<html>")}, "studies")
    assert result.exit_code == 3
    assert "does not answer as a Nightsweep server" in result.stderr


def test_an_answer_that_gives_no_reason_asks_whether_it_is_the_right_server(run: Any) -> None:
    result = run({"GET /v1/studies": httpx.Response(404, text="<html>")}, "studies")
    assert "Is http://sweeps.example a Nightsweep server?" in result.stderr


def test_a_missing_key_says_which_variable_holds_it(run: Any) -> None:
    result = run({"GET /v1/studies": problem(401, "Unauthorized", "A key is needed.")}, "studies")
    assert result.exit_code == 1
    assert "NIGHTSWEEP_API_KEY" in result.stderr


def test_the_key_comes_from_the_environment(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSWEEP_API_KEY", "s3cret")
    api = FakeApi({"GET /v1/studies": items()})
    assert run(api, "studies").stdout == "No studies.\n"
    assert api.requests[0].headers["Authorization"] == "Bearer s3cret"


@pytest.mark.parametrize(
    "arguments",
    [
        ["studies", "--server", "nowhere"],
        ["studies", "--state", "sleeping"],
        ["submit", "none.yaml"],
        ["submit"],
        ["clone", "tone"],
        ["dream"],
        ["schedules", "dream"],
        ["api", "--port", "70000"],
    ],
)
def test_wrong_usage_exits_2_and_says_so_on_stderr(run: Any, arguments: list[str]) -> None:
    result = run({}, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["studies", "--limit", "0"], "must be at least 1"),
        (["studies", "--limit", "many"], "must be a whole number"),
        (["api", "--port", "70000"], "must be at most 65535"),
        (["schedules", "edit", "tone", "--catch-up", "all"], "'all' is not one of 'latest', 'none'."),
    ],
)
def test_a_wrong_value_of_an_option_is_said_in_plain_words(
    run: Any, arguments: list[str], message: str
) -> None:
    assert f"Invalid value for '{arguments[-2]}': {message}" in run({}, *arguments).stderr


def test_a_wrong_setting_names_its_variable_and_hides_its_value(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSWEEP_DATABASE_URL", "mysql://me:hunter2@host/x")
    result = run({}, "db", "check")
    assert result.exit_code == 2
    assert "NIGHTSWEEP_DATABASE_URL: 'mysql' is not supported" in result.stderr
    assert "hunter2" not in result.stderr


def test_a_variable_that_is_no_setting_is_warned_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NIGHTSWEEP_ORPHAN_TIMEOUT", "60")
    result = CliRunner().invoke(app, ["db", "upgrade", "--home", str(tmp_path / "home")])
    assert result.exit_code == 0
    assert "unknown setting NIGHTSWEEP_ORPHAN_TIMEOUT" in result.stderr
    assert "Did you mean NIGHTSWEEP_ORPHAN_TIMEOUT_SECONDS?" in result.stderr


def test_lists_take_filters(run: Any) -> None:
    api = FakeApi({"GET /v1/studies": items(), "GET /v1/schedules": items()})
    arguments = [
        "--state",
        "running",
        "--state",
        "queued",
        "--prefix",
        "to",
        "--owner",
        "a",
        "--schedule",
        "n",
    ]
    assert run(api, "studies", *arguments).stdout == "No studies match.\n"
    assert run(api, "schedules", "list", "--prefix", "n", "--owner", "a", "--disabled").stdout == (
        "No schedules match.\n"
    )
    assert [request.url.query.decode() for request in api.requests] == [
        "limit=100&state=running&state=queued&prefix=to&owner=a&schedule=n",
        "prefix=n&owner=a&enabled=false",
    ]


def test_studies_stops_at_the_limit(run: Any) -> None:
    page = httpx.Response(
        200, json={"items": [study_json(name=f"s{n}") for n in range(3)], "next_cursor": "more"}
    )
    result = run({"GET /v1/studies": page}, "studies", "--limit", "2", "--json")
    assert [one["name"] for one in json.loads(result.stdout)] == ["s0", "s1"]


def test_a_clone_keeps_the_space_and_drops_the_presets_label(run: Any) -> None:
    api = FakeApi(
        {
            "GET /v1/studies/tone": study(),
            "POST /v1/studies": httpx.Response(201, json=study_json(name="tone-2")),
        }
    )
    result = run(api, "clone", "tone", "--name", "tone-2")
    assert result.exit_code == 0
    assert api.body() == {
        "name": "tone-2",
        "model": {"id": "/models/base"},
        "search": {"algorithm": "tpe", "space": {"lora_r": {"choices": [4, 8]}}},
        "objective": {"metric": "eval_loss", "direction": "minimize"},
    }


def test_cancel_says_whether_it_is_done_or_on_its_way(run: Any) -> None:
    route = "POST /v1/studies/tone/cancel"
    on_its_way = run({route: httpx.Response(202, json=study_json())}, "cancel", "tone")
    done = run({route: httpx.Response(202, json=study_json(state="cancelled"))}, "cancel", "tone")
    assert on_its_way.stdout.startswith("Study tone is being cancelled")
    assert done.stdout == "Study tone is cancelled.\n"


def test_pause_says_whether_it_is_done_or_on_its_way_and_how_to_go_on(run: Any) -> None:
    route = "POST /v1/studies/tone/pause"
    on_its_way = run({route: httpx.Response(202, json=study_json(pause_requested=True))}, "pause", "tone")
    done = run({route: httpx.Response(202, json=study_json(state="paused"))}, "pause", "tone")
    go_on = "Resume it with: nightsweep resume tone\n"
    assert on_its_way.stdout == (f"Study tone is being paused: its trials are writing checkpoints.\n{go_on}")
    assert done.stdout == f"Study tone is paused.\n{go_on}"


def test_resume_says_what_the_study_waits_for(run: Any) -> None:
    study = study_json(state="queued", reason="resumed; waiting for a coordinator")
    result = run({"POST /v1/studies/tone/resume": httpx.Response(202, json=study)}, "resume", "tone")
    assert result.stdout == (
        "Study tone is queued (resumed; waiting for a coordinator).\nWatch it with: nightsweep watch tone\n"
    )


def test_export_writes_one_row_per_trial_with_a_column_per_hyperparameter_fixed_value_and_metric(
    run: Any,
) -> None:
    recipe = {"learning_rate": 3.123e-4, "lora_r": 8, "epochs": 1.0, "quantization": "nf4"}
    first = trial_json(
        0,
        value=0.5,
        recipe=recipe,
        best_rung=960,
        metrics={"eval_loss": 0.5, "accuracy": 0.9},
        rungs=[{"rung": 960, "value": 0.5}],
        train_seconds=12.5,
        peak_memory_bytes=2048,
        predicted_memory_bytes=1024,
        useful_token_share=0.75,
        gradient_noise_scale=21.6,
        diagnosis=[{"verdict": "under_trained", "evidence": "still falling"}],
        started_at="2026-07-01T22:00:05Z",
    )
    second = trial_json(
        1,
        "failed",
        params={"lora_r": 4, "scheduler": "cosine"},
        recipe=recipe,
        reason='no "text", no loss',
    )
    result = run({"GET /v1/studies/tone": study(), TRIALS: items(first, second)}, "export", "tone")
    assert result.stdout == (
        "number,state,value,best_rung,repeat_of,seed,evaluates,feasible,params.learning_rate,params.lora_r,"
        "params.scheduler,recipe.epochs,recipe.quantization,"
        "metrics.eval_loss,metrics.accuracy,examples_seen,train_seconds,peak_memory_bytes,"
        "predicted_memory_bytes,useful_token_share,gradient_noise_scale,diagnosis,"
        "started_at,ended_at,adapter,reason\n"
        "0,completed,0.5,960,,,,true,0.0003123,8,,1.0,nf4,0.5,0.9,960,12.5,2048,1024,0.75,21.6,under_trained,"
        "2026-07-01T22:00:05+00:00,,,\n"
        '1,failed,,,,,,true,,4,cosine,1.0,nf4,,,0,,,,,,,,,,"no ""text"", no loss"\n'
    )


def test_export_as_json_holds_the_study_and_its_trials(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    replies = {"GET /v1/studies/tone": study(), TRIALS: items(trial_json(0))}
    result = run(replies, "export", "tone", "--format", "json", "-o", str(file))
    assert (result.exit_code, result.stdout) == (0, "")
    assert json.loads(file.read_text()) == {"study": study_json(), "trials": [trial_json(0)]}


def test_export_to_a_place_that_cannot_be_written_exits_2(run: Any, tmp_path: Path) -> None:
    replies = {"GET /v1/studies/tone": study(), TRIALS: items()}
    result = run(replies, "export", "tone", "-o", str(tmp_path / "none" / "out.csv"))
    assert result.exit_code == 2
    assert "No such file or directory" in result.stderr


PEFT = {"adapter_config.json": "{}", "adapter_model.safetensors": "weights"}


def archive(**files: str) -> httpx.Response:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as target:
        for name, text in files.items():
            target.writestr(name, text)
    return httpx.Response(200, content=content.getvalue())


def adapter_replies(reply: httpx.Response) -> dict[str, Reply | list[Reply]]:
    best = f"GET /v1/studies/{'5' * 32}/best"
    return {
        "GET /v1/studies/tone": study(),
        best: httpx.Response(200, json=best_json(7)),
        f"GET /v1/studies/{'5' * 32}/trials/7/adapter": reply,
    }


def test_the_best_trials_adapter_lands_in_a_folder_named_after_it(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(adapter_replies(archive(**PEFT)), "adapter", "tone")
    assert result.stdout == "tone-7-best\n"
    assert (tmp_path / "tone-7-best" / "adapter_config.json").read_text() == "{}"
    assert [entry.name for entry in tmp_path.iterdir()] == ["tone-7-best"]


def test_an_adapter_with_a_head_lands_with_its_model_s_configuration(run: Any, tmp_path: Path) -> None:
    replies = adapter_replies(archive(**PEFT, **{"config.json": "{}"}))
    assert run(replies, "adapter", "tone", "-o", str(tmp_path / "out")).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*PEFT, "config.json"])


def test_an_adapter_never_overwrites_what_is_there(run: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    result = run(adapter_replies(archive(x="y")), "adapter", "tone", "7", "-o", str(tmp_path))
    assert result.exit_code == 2
    assert "already exists" in result.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.txt"]


def test_an_adapter_that_is_no_archive_leaves_no_folder(run: Any, tmp_path: Path) -> None:
    replies = adapter_replies(httpx.Response(200, content=b"not a zip"))
    result = run(replies, "adapter", "tone", "-o", str(tmp_path / "out"))
    assert result.exit_code == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "files",
    [
        {**PEFT, "../escaped": "x"},
        {**PEFT, "/tmp/escaped": "x"},
        {**PEFT, "adapter_config.json/../../escaped": "x"},
        {**PEFT, "sitecustomize.py": "x"},
        {"adapter_config.json": "{}"},
        {"adapter_config.json": "{}", "config.json": "{}"},
        {},
    ],
)
def test_an_archive_of_anything_but_an_adapter_is_not_unpacked(
    run: Any, tmp_path: Path, files: dict[str, str]
) -> None:
    result = run(adapter_replies(archive(**files)), "adapter", "tone", "-o", str(tmp_path / "in" / "out"))
    assert result.exit_code == 3
    assert "cannot be unpacked" in result.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_archive_that_would_fill_the_disk_is_not_unpacked(run: Any, tmp_path: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("adapter_config.json", "{}")
        target.writestr("adapter_model.safetensors", b"0" * 100_000_000)
    reply = httpx.Response(200, content=content.getvalue())
    result = run(adapter_replies(reply), "adapter", "tone", "-o", str(tmp_path / "out"))
    assert result.exit_code == 3
    assert list(tmp_path.iterdir()) == []


def test_a_schedule_is_added_from_a_study_file(run: Any, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("name: tone")
    api = FakeApi({"POST /v1/schedules": httpx.Response(201, json=SCHEDULE)})
    result = run(
        api,
        *("schedules", "add", str(tmp_path / "study.yaml"), "--cron", "0 22 * * *"),
        *("--timezone", "Europe/Berlin", "--disabled"),
    )
    assert api.body() == {
        "cron": "0 22 * * *",
        "timezone": "Europe/Berlin",
        "enabled": False,
        "definition": {"name": "tone", "warm_start": {"from": "tone"}},
    }
    assert "Next firing   2026-07-01 20:00:00Z" in result.stdout
    assert "warm_start: {from: nightly}" in result.stderr
    assert "--cold" in result.stderr


@pytest.mark.parametrize(
    ("study", "options", "warm"),
    [
        ("name: tone", ("--cold",), None),
        ("name: tone", ("--name", "nightly"), {"from": "nightly"}),
        ("name: tone\nwarm_start: {from: other, as: prior}", (), {"from": "other", "as": "prior"}),
        ("trials: 1", (), None),
    ],
)
def test_a_schedule_is_offered_the_results_of_its_own_sweeps(
    run: Any, tmp_path: Path, study: str, options: tuple[str, ...], warm: Any
) -> None:
    (tmp_path / "study.yaml").write_text(study)
    api = FakeApi({"POST /v1/schedules": httpx.Response(201, json=SCHEDULE)})
    run(api, "schedules", "add", str(tmp_path / "study.yaml"), "--cron", "0 22 * * *", *options)
    assert api.body()["definition"].get("warm_start") == warm


def test_all_that_a_schedule_can_do_has_an_option(run: Any, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("name: tone")
    api = FakeApi({"POST /v1/schedules": httpx.Response(201, json=SCHEDULE)})
    fields = {
        "start": "2026-12-01",
        "end": "2026-12-31T18:00",
        "overlap": "cancel_running",
        "catch_up": "none",
        "until": "06:00",
        "until_action": "continue",
        "sweep_name": "tone-{date}",
    }
    options = [part for key, value in fields.items() for part in (f"--{key.replace('_', '-')}", value)]
    run(api, "schedules", "add", str(tmp_path / "study.yaml"), "--cron", "0 22 * * *", "--cold", *options)
    assert {key: api.body()[key] for key in fields} == fields
    api = FakeApi({"PATCH /v1/schedules/nightly": httpx.Response(200, json=SCHEDULE)})
    run(api, "schedules", "edit", "nightly", "--start", "", "--until", "", "--catch-up", "latest")
    assert api.body() == {"start": None, "until": None, "catch_up": "latest"}


def test_paths_with_a_date_are_of_the_folder_beside_the_study_file(run: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "study.yaml").write_text(
        "name: a\ndata: {train: 'data/{date}.jsonl', eval: 'other/{date}.jsonl'}"
    )
    api = FakeApi({"POST /v1/schedules": httpx.Response(201, json=SCHEDULE)})
    run(api, "schedules", "add", str(tmp_path / "study.yaml"), "--cron", "0 22 * * *")
    data = {"train": str(tmp_path / "data/{date}.jsonl"), "eval": "other/{date}.jsonl"}
    assert api.body()["definition"]["data"] == data


FIRINGS = {
    "timezone": "Europe/Berlin",
    "enabled": False,
    "items": [
        {
            "at": "2026-03-29T01:00:00Z",
            "local": "2026-03-29T03:00",
            "offset": "+02:00",
            "note": "moved from 02:30, which the clock skips",
        }
    ],
}


def test_the_next_firings_of_a_schedule_are_shown_with_what_the_clock_does(run: Any) -> None:
    replies = {"GET /v1/schedules/nightly/firings": httpx.Response(200, json=FIRINGS)}
    lines = run(replies, "schedules", "next", "nightly", "--count", "3").stdout.splitlines()
    assert lines == [
        "local (Europe/Berlin)  offset  UTC                   note",
        "2026-03-29 03:00       +02:00  2026-03-29 01:00:00Z  moved from 02:30, which the clock skips",
        "Nothing fires after that.",
        "The schedule is disabled: it fires at these times once it is enabled.",
    ]


def test_the_firings_of_a_schedule_that_is_not_there_yet_are_shown(run: Any) -> None:
    api = FakeApi({"GET /v1/schedule-preview": httpx.Response(200, json=FIRINGS | {"enabled": True})})
    options = ("--cron", "30 2 * * *", "--timezone", "Europe/Berlin", "--count", "1", "--json")
    assert json.loads(run(api, "schedules", "next", *options).stdout) == FIRINGS | {"enabled": True}
    query = dict(api.requests[-1].url.params)
    assert query == {"cron": "30 2 * * *", "timezone": "Europe/Berlin", "count": "1"}
    for wrong in ((), ("nightly", "--cron", "0 0 * * *"), ("nightly", "--start", "2026-12-01")):
        result = run({}, "schedules", "next", *wrong)
        assert (result.exit_code, "--cron" in result.stderr) == (2, True)


@pytest.mark.parametrize(("command", "enabled"), [("enable", True), ("disable", False)])
def test_a_schedule_is_switched_on_and_off(run: Any, command: str, enabled: bool) -> None:
    api = FakeApi({"PATCH /v1/schedules/nightly": httpx.Response(200, json=SCHEDULE | {"enabled": enabled})})
    result = run(api, "schedules", command, "nightly")
    assert api.body() == {"enabled": enabled}
    assert f"Schedule nightly ({command}d)" in result.stdout


def test_a_schedule_is_edited(run: Any, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("name: tone")
    warm = SCHEDULE | {"definition": {"warm_start": {"from": "nightly"}}}
    replies = {
        "GET /v1/schedules/nightly": httpx.Response(200, json=warm),
        "PATCH /v1/schedules/nightly": httpx.Response(200, json=SCHEDULE | {"name": "mornings"}),
    }
    api = FakeApi(replies)
    result = run(
        api,
        *("schedules", "edit", "nightly", "--file", str(tmp_path / "study.yaml"), "--name", "mornings"),
        *("--cron", "0 6 * * *", "--timezone", "UTC", "--seed", "0", "--overlap", "allow"),
        "--no-repeat-configurations",
    )
    assert api.body() == {
        "name": "mornings",
        "cron": "0 6 * * *",
        "timezone": "UTC",
        "seed": 0,
        "overlap": "allow",
        "repeat_configurations": False,
        "definition": {"name": "tone", "warm_start": {"from": "nightly"}},
    }
    assert "Schedule mornings (enabled)" in result.stdout


def test_an_edit_that_changes_nothing_says_what_can_be_changed(run: Any) -> None:
    result = run({}, "schedules", "edit", "nightly")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "nothing to change: give --file, --cron" in result.stderr


def test_a_schedule_is_run_at_once(run: Any) -> None:
    answer = httpx.Response(201, json=study_json(name="nightly-20260701-2200", state="queued"))
    result = run({"POST /v1/schedules/nightly/run": answer}, "schedules", "run", "nightly")
    assert result.stdout.splitlines() == [
        "Study nightly-20260701-2200 is queued.",
        "Follow it with: nightsweep watch nightly-20260701-2200",
    ]


def test_the_runs_of_a_schedule_are_its_sweeps_and_the_firings_that_made_none(run: Any) -> None:
    def sweep(day: int) -> dict[str, Any]:
        at = f"2026-07-0{day}T20:00:00Z"
        return study_json(name=f"nightly-{day}", created_at=at, fired_for=at, reason="", gpu_hours=1.5)

    def event(day: int, kind: str) -> dict[str, Any]:
        at = f"2026-07-0{day}T20:00:00Z"
        words = f"{kind}: it is still running"
        return HISTORY | {"id": day, "at": at, "kind": kind, "message": words, "fired_for": at}

    replies = {
        "GET /v1/schedules/nightly/studies": items(sweep(4), sweep(2), sweep(1)),
        "GET /v1/schedules/nightly/history": items(event(5, "changed"), event(3, "missed")),
    }
    lines = run(replies, "schedules", "runs", "nightly").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["study", "nightly-4", "-", "nightly-2", "nightly-1"]
    assert lines[2].split()[1:4] == ["2026-07-03", "20:00:00Z", "missed"]
    assert lines[2].endswith("missed: it is still running")
    assert "1.5" in lines[1].split()
    shorter = run(replies, "schedules", "runs", "nightly", "--limit", "2").stdout.splitlines()
    assert shorter == lines[:3]


def test_the_history_of_a_schedule_says_who_changed_what(run: Any) -> None:
    changes = {
        "definition.search.seed": {"from": 7, "to": 8},
        "name": {"from": "a", "to": "b"},
        "x": {"to": 1},
    }
    replies = {
        "GET /v1/schedules/nightly/history": items(
            HISTORY | {"kind": "changed", "asked_by": "alice", "changes": changes},
            HISTORY | {"kind": "created", "asked_by": "bob", "message": "created"},
        )
    }
    lines = run(replies, "schedules", "history", "nightly").stdout.splitlines()
    assert lines[1].split()[2] == "alice"
    assert lines[1].endswith("definition.search.seed: 7 -> 8; name: a -> b; x: - -> 1")
    assert lines[2].split()[2:] == ["bob", "created"]


def test_a_schedule_shows_its_seed_its_rule_and_what_it_skipped(run: Any) -> None:
    skipped = {"fired_for": "2026-07-01T20:00:00Z", "reason": "skipped: its sweep is still running"}
    schedule = SCHEDULE | {"definition": {"search": {"seed": 7}}, "last_skipped": skipped}
    answer = httpx.Response(200, json=schedule)
    shown = run({"GET /v1/schedules/nightly": answer}, "schedules", "show", "nightly").stdout
    for line in (
        "  Seed          7",
        "  Overlap       skip",
        "  Repeats       no configuration is evaluated again on the same data",
        "  Last skipped  2026-07-01 20:00:00Z: skipped: its sweep is still running",
    ):
        assert line in shown.splitlines()


def test_a_schedule_is_removed(run: Any) -> None:
    result = run({"DELETE /v1/schedules/nightly": httpx.Response(204)}, "schedules", "remove", "nightly")
    assert (result.exit_code, result.stdout) == (0, "Schedule nightly removed.\n")


def test_ctrl_c_in_watch_says_that_the_study_goes_on(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_request: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    replies: dict[str, Reply | list[Reply]] = {
        "GET /v1/studies/tone": study(),
        f"GET /v1/studies/{'5' * 32}": study(),
        TRIALS: interrupt,
    }
    result = run(replies, "watch", "tone")
    assert result.exit_code == 130
    assert "the study goes on" in result.stderr


def test_control_characters_in_an_answer_never_reach_the_terminal(run: Any) -> None:
    reply = problem(409, "Conflict", "name \x1b[2J taken")
    result = run({"POST /v1/studies/tone/cancel": reply}, "cancel", "tone")
    assert "\x1b" not in result.stderr


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, service.cli.root\n"
        "heavy = {'torch', 'ray', 'optuna', 'transformers', 'fastapi', 'sqlalchemy'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")
