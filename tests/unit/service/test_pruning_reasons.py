"""Cut-offs in words agree with the pruners' own rules."""

from __future__ import annotations

from typing import Any

import pytest

from search_spaces.definition import StudyDefinition, parse_definition
from service.pruning_reasons import describe
from service.trial_values import TrialValues


def _definition(pruning: dict[str, Any], metric: str = "eval_loss") -> StudyDefinition:
    return parse_definition(
        {
            "name": "a",
            "model": {"id": "org/base"},
            "data": {"train": "t.jsonl", "eval": "e.jsonl"},
            "search": {"trials": 9, "space": {"learning_rate": {"min": 1e-5, "max": 1e-3}}},
            "objective": {"metric": metric},
            "evaluation": {"every_examples": 100},
            "pruning": pruning,
        }
    )


def _trial(number: int, *rungs: tuple[int, float], value: float | None = None) -> TrialValues:
    return TrialValues(number=number, params={}, value=value, rungs=rungs, state="running", user_attrs={})


def test_the_best_share_of_a_rung() -> None:
    definition = _definition({"algorithm": "asha", "min_examples": 100, "reduction_factor": 3})
    others = [_trial(i, (100, float(i)), (300, 9.0)) for i in range(1, 6)]
    reason = describe(definition, _trial(9, (100, 4.5)), others)
    assert reason == "eval_loss 4.5 at 100 examples, cut-off 2 of 5 peers"


def test_a_trial_that_was_judged_late_meets_its_peers_at_their_rung() -> None:
    definition = _definition({"algorithm": "asha", "min_examples": 100, "reduction_factor": 2})
    others = [_trial(1, (150, 1.0)), _trial(2, (50, 0.1))]
    reason = describe(definition, _trial(9, (150, 2.0)), others)
    assert reason == "eval_loss 2 at 150 examples, cut-off 1 of 1 peer"


def test_a_metric_to_maximize_is_cut_off_from_above() -> None:
    definition = _definition({"algorithm": "asha", "min_examples": 100, "reduction_factor": 2}, "accuracy")
    others = [_trial(1, (100, 0.9)), _trial(2, (100, 0.8)), _trial(3, (100, 0.1))]
    reason = describe(definition, _trial(9, (100, 0.5)), others)
    assert reason == "accuracy 0.5 at 100 examples, cut-off 0.8 of 3 peers"


def test_a_percentile_of_completed_trials_against_the_best_so_far() -> None:
    definition = _definition({"algorithm": "percentile", "percentile": 25.0})
    others = [_trial(i, (1000, float(i)), value=1.0) for i in range(1, 6)] + [_trial(6, (1000, 0.0))]
    reason = describe(definition, _trial(9, (500, 2.5), (1000, 3.0)), others)
    assert reason == "eval_loss 2.5 at 1,000 examples, cut-off 2 of 5 peers"


@pytest.mark.parametrize(
    ("others", "words"),
    [([], "eval_loss 3 at 100 examples"), ([1.0, 2.0], ", where 2 peers had a median of 1.5")],
)
def test_hyperband_names_no_cut_off(others: list[float], words: str) -> None:
    definition = _definition({"algorithm": "hyperband", "min_examples": 100})
    peers = [_trial(i, (100, value)) for i, value in enumerate(others)]
    assert describe(definition, _trial(9, (100, 3.0)), peers).endswith(words)
