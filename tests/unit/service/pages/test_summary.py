"""A study, and a schedule, in sentences."""

from __future__ import annotations

from typing import Any

import pytest

from service.pages import summary
from service.pages.summary import Loss, Troubles
from service.reports.schemas import ReportView
from tests.support.fakes.api import study_json, trial_json

LUCK = "Trial 3 and trial 0 are not distinguishable."


def report(
    *, best: dict[str, Any] | None = None, seconds: float | None = 3600.0, **changes: Any
) -> ReportView:
    study = study_json(trials_requested=24, repeats_requested=0) | {
        "metric": "eval_loss",
        "direction": "minimize",
    }
    cost = {
        "gpu_hours": changes.pop("gpu_hours", 0.0),
        "worker_hours": 1.25,
        "examples_trained": 100,
        "examples_saved_by_pruning": 100,
        "examples_saved_by_divergence": 0,
        "saved_share": 0.5,
    }
    constraints = changes.pop("constraints", [])
    document = {
        "made_at": "2026-07-02T00:00:00Z",
        "study": study | changes,
        "seconds": seconds,
        "best": best,
        "importance": {"parameters": [], "trials": 0, "best_trials": 0, "sentence": ""},
        "verdicts": {},
        "constraints": constraints,
        "advice": [],
        "cost": cost,
    }
    return ReportView.read(document)


def best(value: float = 0.4, **judged: Any) -> dict[str, Any]:
    judgement = {
        "winner": 3,
        "decided_by": "search",
        "candidates": [],
        "p_value": None,
        "distinguishable": None,
        "sentence": LUCK,
        **judged,
    }
    return trial_json(3, value=value) | {"judgement": judgement, "pareto_front": None}


def candidate(number: int, mean: float | None, n: int) -> dict[str, Any]:
    return {
        "trial_number": number,
        "value": 0.4,
        "runs": [],
        "n": n,
        "mean": mean,
        "standard_deviation": None,
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"state": "completed", "ended_at": "2026-07-01T23:00:05Z", "counts": {"completed": 24}},
            "The study has completed: 24 completed.",
        ),
        (
            {"state": "failed", "reason": "the data is\n<gone>", "ended_at": "2026-07-01T23:00:05Z"},
            "The study has failed: the data is <gone>.",
        ),
        (
            {"state": "paused", "reason": "paused on request", "counts": {"pruned": 2, "total": 3}},
            "The study is paused: paused on request. 2 of 24 trials ended so far.",
        ),
        (
            {"state": "queued", "reason": "waiting for a GPU", "counts": {"total": 0}},
            "The study is queued: waiting for a GPU. 0 of 24 trials ended so far.",
        ),
        (
            {"state": "running", "reason": "training", "stage": "repeats", "repeats_requested": 4,
             "counts": {"completed": 25, "total": 28, "repeats": 4}},
            "The study is running, repeating the best recipes. 25 of 28 trials ended so far.",
        ),
    ],
)  # fmt: skip
def test_how_far_it_is(changes: dict[str, Any], said: str) -> None:
    assert summary.standing(report(**changes)) == said


def test_the_winner_and_by_how_much() -> None:
    ranked = [(3, 0.4), (7, 0.5), (1, 4.0)]
    assert summary.winner(report(best=best()), ranked) == (
        "Trial 3 is the best of 3 completed trials: eval_loss 0.4, 20.0% lower than the second, trial 7"
        " (0.5), and 90.0% lower than the last (4)."
    )
    more = report(best=best(), direction="maximize", metric="f1")
    assert summary.winner(more, [(3, 0.4), (7, 0.3)]) == (
        "Trial 3 is the best of 2 completed trials: f1 0.4, 0.1 higher than the second, trial 7 (0.3)."
    )
    assert summary.winner(report(best=best()), [(3, 0.4), (7, 0.4)]).endswith("0.4, as trial 7.")
    assert summary.winner(report(best=best()), [(3, 0.4)]).endswith("of 1 completed trial: eval_loss 0.4.")


def test_a_winner_by_its_repeats_is_compared_by_their_means() -> None:
    judged = {"decided_by": "repeats", "candidates": [candidate(3, 0.45, 3), candidate(7, 0.5, 3)]}
    assert summary.winner(report(best=best(**judged)), [(7, 0.39), (3, 0.4)]) == (
        "Trial 3 is the best: eval_loss 0.45 on average over 3 runs with fresh seeds (0.4 in the search),"
        " 10.0% lower than trial 7 (0.5)."
    )
    judged["candidates"] = [candidate(3, 0.45, 3), candidate(7, None, 0)]
    assert summary.winner(report(best=best(**judged)), [(3, 0.4)]).endswith("(0.4 in the search).")


def test_without_a_winner_it_says_why() -> None:
    assert summary.winner(report(), []) == "No trial has completed yet."
    broken = [{"name": "peak_memory_gb", "broken": 2, "completed": 2}]
    assert summary.winner(report(constraints=broken), []) == "No completed trial meets the constraints."


def test_what_it_cost() -> None:
    assert summary.cost(report()) == (
        "It has taken 1h 00m and 1.25 worker-hours on CPUs. Early ends saved 50% of all training examples."
    )
    assert "and 3.5 GPU-hours." in summary.cost(report(gpu_hours=3.5))
    assert summary.cost(report(seconds=None)) == "It has not started, so it has cost nothing yet."


def test_what_went_wrong() -> None:
    found = Troubles(
        failed=[(1, "no such file"), (2, "no such file"), (3, "x" * 5000), (4, "c"), (5, "d"), (6, "e")],
        diverged=1,
        out_of_memory=2,
        lost=[Loss(trial=1, reason="its worker died"), Loss(trial=2, reason="its worker died")],
        resumed=2,
    )
    said = summary.troubles(found, ended=True)
    assert said[0].startswith("6 trials failed: no such file (2 trials); xxx")
    assert said[0].endswith("; c (1 trial); and 2 other reasons.")
    assert len(said[0]) < 400
    assert said[1:] == [
        "2 trials ran out of memory.",
        "1 trial diverged.",
        "2 attempts were lost (its worker died); 2 went on from a checkpoint.",
    ]
    one = Troubles(failed=[(1, "no such file")])
    assert summary.troubles(one, ended=True) == ["1 trial failed: no such file."]
    assert summary.troubles(Troubles(), ended=True) == ["Nothing went wrong."]
    assert summary.troubles(Troubles(), ended=False) == ["Nothing has gone wrong so far."]


def test_the_latest_night_is_compared_with_those_on_the_same_data() -> None:
    assert summary.trend([], "loss", maximizes=False) == []
    assert summary.trend([("a", 1.0)], "loss", maximizes=False) == ["The latest result, a, has loss 1."]
    nights = [("a", 1.0), ("b", 2.0), ("c", 1.5)]
    [said] = summary.trend(nights, "loss", maximizes=False)
    assert (
        said == "The latest result, c, has loss 1.5: 50.0% higher than the best of the 2 sweeps before it on"
        " the same data (a, 1)."
    )
    [said] = summary.trend(nights, "f1", maximizes=True)
    assert "1.5: 0.5 lower than the best" in said
    [said] = summary.trend([("a", 1.0), ("b", 1.0)], "loss", maximizes=False)
    assert "1: the same as the best of the 1 sweep before it" in said
