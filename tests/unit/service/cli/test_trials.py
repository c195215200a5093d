"""Lists of trials and the best one, as people read them: in 80 columns, in the order they want."""

from __future__ import annotations

import functools
import json
from typing import Any

import httpx
import pytest
from rich.cells import cell_len
from typer.testing import CliRunner, Result

from search_spaces.recipe import Recipe
from service.cli import options
from service.cli.root import app
from service.client import Client
from tests.support.fakes.api import FakeApi, best_json, study_json, trial_json

PARAMS = {
    "learning_rate": 2.8095464e-3,
    "batch_size": 8,
    "epochs": 0.23,
    "weight_decay": 0.0811,
    "lora_r": 8,
    "lr_scheduler": "constant",
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"],
}
FEW = {name: PARAMS[name] for name in ("learning_rate", "batch_size", "lora_r")}
NAME = "support-tone-with-a-name-that-is-as-long-as-a-name-may-be-0123456789"
REASON = "the loss was not finite at step 12 of 400: 日本語 " + "and so on " * 20
TRIALS = [
    trial_json(0, value=0.5, params=FEW, rungs=[{"rung": 960, "value": 0.5}], metrics={"accuracy": 0.7}),
    trial_json(1, value=0.412, params=FEW | {"lora_r": 4}, train_seconds=75.0, metrics={"accuracy": 0.6}),
    trial_json(2, "failed", params=FEW | {"lora_r": 16}, reason=REASON),
    trial_json(3, "pruned", params=FEW, reason="behind", rungs=[{"rung": 300, "value": 0.9}]),
    trial_json(4, value=0.3, params=FEW, feasible=False),
    trial_json(5, value=0.2, params=FEW, repeat_of=1, seed=43),
    trial_json(6, "waiting", params={}),
]
BEST = {"trial_number": 1, "value": 0.412, "params": FEW}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command line against a study with these trials."""
    monkeypatch.delenv("NIGHTSWEEP_API_KEY", raising=False)
    monkeypatch.setenv("NIGHTSWEEP_SERVER", "http://sweeps.example")

    def run_command(trials: list[dict[str, Any]], *arguments: str, **study: Any) -> Result:
        found = study_json(**{"best": BEST, **study})
        api = FakeApi(
            {
                "GET /v1/studies/tone": httpx.Response(200, json=found),
                "GET /v1/studies/tone/best": httpx.Response(200, json=best_json(0) | next(iter(trials), {})),
                f"GET /v1/studies/{'5' * 32}/trials": httpx.Response(
                    200, json={"items": trials, "next_cursor": None}
                ),
            }
        )
        monkeypatch.setattr(options, "Client", functools.partial(Client, transport=api.transport))
        return CliRunner().invoke(app, arguments, catch_exceptions=False)

    return run_command


def numbers(result: Result) -> list[int]:
    """The trials that a command lists."""
    return [int(line.split()[0]) for line in result.stdout.splitlines() if line[:1].isdigit()]


@pytest.mark.parametrize("params", [{}, FEW, PARAMS], ids=["none", "few", "many"])
@pytest.mark.parametrize("columns", [None, "80", "100"])
def test_a_list_of_trials_fits_the_width_and_cuts_nothing(
    run: Any, monkeypatch: pytest.MonkeyPatch, params: dict[str, Any], columns: str | None
) -> None:
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    trials = [trial_json(n, value=0.4, params=params) for n in range(12)]
    trials.append(trial_json(12, "failed", params=params, reason=REASON))
    result = run(trials, "trials", "tone", name=NAME)
    assert result.exit_code == 0
    assert max(cell_len(line) for line in result.stdout.splitlines()) <= int(columns or 80)
    assert numbers(result) == list(range(13))
    text = "".join(result.stdout.split())
    assert "".join(REASON.split()) in text
    for value in ("0.00281", "gate_proj") if params == PARAMS else ():
        assert value in text


def test_a_few_hyperparameters_have_columns_of_their_own_and_a_reason_is_below_its_trial(run: Any) -> None:
    result = run(TRIALS[:4], "trials", "tone")
    assert result.stdout.splitlines()[:6] == [
        "trial  state      eval   learning  batch  lora  examples  time    best rung",
        "                  loss   rate      size   r",
        "0      completed  0.5    0.00281   8      8     960       -       -",
        "1 *    completed  0.412  0.00281   8      4     0         1m 15s  -",
        "2      failed     -      0.00281   8      16    0         -       -",
        "    note: the loss was not finite at step 12 of 400: 日本語 and so on and so",
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], [0, 1, 2, 3, 4, 5, 6]),
        (["--sort", "number"], [0, 1, 2, 3, 4, 5, 6]),
        (["--sort", "value"], [5, 4, 1, 0, 2, 3, 6]),
        (["--sort", "best"], [5, 4, 1, 0, 2, 3, 6]),
        (["--sort", "best", "--top", "1"], [1]),
        (["--sort", "eval_loss"], [5, 4, 1, 0, 2, 3, 6]),
        (["--sort", "accuracy"], [0, 1, 2, 3, 4, 5, 6]),
        (["--sort", "examples"], [0, 3, 1, 2, 4, 5, 6]),
        (["--sort", "time"], [1, 0, 2, 3, 4, 5, 6]),
        (["--sort", "lora_r"], [1, 0, 3, 4, 5, 2, 6]),
        (["--top", "1"], [1]),
        (["--top", "9"], [1, 0]),
        (["--top", "2", "--sort", "examples"], [0, 3]),
        (["--state", "failed"], [2]),
        (["--state", "failed", "--state", "waiting"], [2, 6]),
        (["--state", "completed", "--sort", "lora_r", "--top", "2"], [1, 0]),
        (["--state", "out-of-memory"], []),
    ],
)
def test_trials_are_sorted_filtered_and_counted_off(
    run: Any, options: list[str], expected: list[int]
) -> None:
    listed = run(TRIALS, "trials", "tone", *options)
    as_json = run(TRIALS, "trials", "tone", *options, "--json")
    assert (listed.exit_code, numbers(listed)) == (0, expected)
    assert json.loads(as_json.stdout) == [TRIALS[number] for number in expected]


def test_the_largest_value_is_the_best_where_the_study_maximizes(run: Any) -> None:
    listed = run(TRIALS, "trials", "tone", "--top", "2", metric="accuracy", direction="maximize")
    assert numbers(listed) == [0, 1]


@pytest.mark.parametrize(("metric", "expected"), [("mcc", [1, 0, 2]), ("mae", [2, 0, 1])])
def test_every_metric_is_sorted_with_the_best_first(run: Any, metric: str, expected: list[int]) -> None:
    values = (0.1, 0.4, -0.2)
    trials = [trial_json(n, value=0.5, params={}, metrics={metric: v}) for n, v in enumerate(values)]
    assert numbers(run(trials, "trials", "tone", "--sort", metric)) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--state", "prunde"], "--state: unknown value 'prunde'. Did you mean pruned? Allowed: waiting, "),
        (
            ["--sort", "lr"],
            "--sort: unknown value 'lr'. Did you mean learning_rate? Allowed: value, number, ",
        ),
        (["--sort", "size"], "--sort: unknown value 'size'. Did you mean batch_size? Allowed: "),
        (["--sort", "luck"], "--sort: unknown value 'luck'. Allowed: "),
        (["--top", "0"], "Invalid value for '--top': must be at least 1"),
        (["--top", "x"], "Invalid value for '--top': must be a whole number"),
    ],
)
def test_an_order_or_a_state_that_does_not_exist_is_wrong_usage(
    run: Any, options: list[str], message: str
) -> None:
    result = run(TRIALS, "trials", "tone", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_no_trials_are_told_apart_from_none_that_fit(run: Any) -> None:
    assert run([], "trials", "tone", best=None).stdout == "No trials yet.\n"
    assert run(TRIALS, "trials", "tone", "--state", "diverged").stdout == "No trial fits these options.\n"


def test_best_shows_every_value_of_the_recipe_by_where_it_comes_from(run: Any) -> None:
    recipe = Recipe(**FEW, warmup_ratio=0.1).in_force(quantization="nf4", max_length=96)
    adapter = {"path": f"/home/me/artifacts/{'5' * 32}/12/1/best", "url": "/v1/adapter"}
    definition = study_json()["definition"] | {"recipe": {"warmup_ratio": 0.1}}
    trial = trial_json(12, value=0.412, params=FEW, recipe=recipe, adapter=adapter)
    result = run([trial], "best", "tone", definition=definition)
    lines = result.stdout.splitlines()
    assert max(len(line) for line in lines) <= 80
    assert lines[2:13] == [
        "Searched",
        "  learning_rate  0.00281",
        "  batch_size     8",
        "  lora_r         8",
        "",
        "Fixed by the study",
        "  warmup_ratio  0.1",
        "  quantization  nf4",
        "  max_length    96",
        "",
        "Defaults",
    ]
    defaults = lines[13 : lines.index("", 13)]
    assert [line.split()[0] for line in defaults] == [
        name for name in recipe if name not in {*FEW, "warmup_ratio", "quantization", "max_length"}
    ]
    assert "  lora_alpha                16 (lora_alpha_ratio x lora_r)" in defaults
    assert "  sgd_momentum              0.9 (not used with optimizer adamw)" in defaults
    assert [line for line in lines if line.split()[1:2] == ["-"]] == []
    assert lines[-6:] == [
        "The adapter on the server:",
        f"  {adapter['path']}",
        "Download it with:",
        "  nightsweep adapter tone",
        "The study in the dashboard:",
        "  http://sweeps.example/dashboard/studies/3",
    ]


def test_an_alpha_that_was_given_explains_the_ratio(run: Any) -> None:
    recipe = Recipe(lora_r=16, lora_alpha=8.0).in_force(quantization="none", max_length=512)
    definition = study_json()["definition"] | {"recipe": {"lora_alpha": 8.0}}
    trial = trial_json(0, value=0.4, params={"lora_r": 16}, recipe=recipe)
    printed = run([trial], "best", "tone", definition=definition).stdout
    assert "  lora_alpha    8\n" in printed
    assert "  lora_alpha_ratio          0.5 (lora_alpha / lora_r)\n" in printed


def test_the_best_trial_of_a_study_with_a_long_name_fits_the_width(run: Any) -> None:
    adapter = {"path": f"/home/me/artifacts/{'5' * 32}/12/1/best", "url": "/v1/adapter"}
    trial = trial_json(12, value=0.412, params=PARAMS, recipe=PARAMS, adapter=adapter)
    lines = run([trial], "best", "tone", name=NAME).stdout.splitlines()
    assert max(len(line) for line in lines) <= 80
    assert f"  nightsweep adapter {'5' * 32}" in lines
