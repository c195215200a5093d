"""A study with everything before and after its search, through REST on real processes."""

from __future__ import annotations

from typing import Any

from tests.acceptance.conftest import RunningService

SEARCH: dict[str, Any] = {
    "algorithm": "tpe",
    "trials": 5,
    "seed": 4,
    "learning_rate_range_test": {"steps": 40},
    "space": {
        "learning_rate": {"min": 1e-6, "max": 1.0, "scale": "log"},
        "lora_r": {"choices": [2, 4]},
    },
}


def test_a_study_is_planned_ranged_searched_repeated_and_reported(running_service: RunningService) -> None:
    repeats = {"top_k": 2, "seeds": 2}
    definition = running_service.definition(
        "whole", search=SEARCH, repeats=repeats, pruning={"algorithm": "asha"}
    )

    plan = running_service.client.post("/v1/studies?dry_run=true", json=definition)
    assert plan.status_code == 200, plan.text
    assert running_service.client.get("/v1/studies/whole").status_code == 404

    running_service.submit(definition)
    study = running_service.wait("whole")
    assert study["state"] == "completed", study["reason"]

    ranged = running_service.client.get("/v1/range-tests/whole.range-test").json()
    assert ranged["state"] == "completed"
    assert len(ranged["corners"]) == 2
    assert all(corner["curve"] for corner in ranged["corners"])
    low, high = study["preparation"]["learning_rate_bounds"]
    assert 1e-6 <= low < high <= 1.0

    trials = running_service.trials("whole")
    assert len(trials) == 5 + 2 * 2
    assert all(low <= trial["params"]["learning_rate"] <= high for trial in trials)
    repeated = [(t["repeat_of"], t["seed"]) for t in trials if t["repeat_of"] is not None]
    assert sorted(seed for _, seed in repeated) == [43, 43, 44, 44]

    best = running_service.client.get("/v1/studies/whole/best").json()
    assert best["number"] in {number for number, _ in repeated}
    means = {entry["trial_number"]: entry["mean"] for entry in best["judgement"]["candidates"]}
    assert min(means, key=lambda number: means[number]) == best["number"]

    report = running_service.client.get("/v1/studies/whole/report")
    assert report.status_code == 200, report.text
    assert report.json()["study"]["range_test"] == "whole.range-test"
    assert report.json()["best"]["number"] == best["number"]
