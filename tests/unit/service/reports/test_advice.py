"""Advice from made-up trials: each sentence has its cause, and is silent without it."""

from __future__ import annotations

from typing import Any

import pytest

from search_spaces.definition import StudyDefinition
from search_spaces.parsing.document import parse_definition
from search_spaces.preparation import Preparation
from search_spaces.recipe import Recipe
from service.analysis.diagnosis import Finding, Verdict
from service.reports.advice import TrialFacts, advise
from service.states import AttemptState


def definition(space: dict[str, Any] | None = None, **sections: Any) -> StudyDefinition:
    space = space or {"learning_rate": {"min": 1e-4, "max": 1e-2, "scale": "log"}}
    return parse_definition(
        {
            "name": "s",
            "model": {"id": "m"},
            "data": {"train": "t.jsonl", "eval": "e.jsonl"},
            "search": {"algorithm": "random", "trials": 16, "space": space},
            **sections,
        }
    )


def trial(
    number: int,
    value: float | None,
    *verdicts: Verdict,
    state: AttemptState = AttemptState.COMPLETED,
    feasible: bool = True,
    scale: float | None = None,
    rung: int | None = None,
    **params: Any,
) -> TrialFacts:
    params = {"learning_rate": 1e-3, **params}
    return TrialFacts(
        number=number,
        state=state,
        params=params,
        recipe=Recipe.build(params),
        value=value,
        feasible=feasible,
        findings=[Finding(verdict=verdict, evidence="", rung=rung) for verdict in verdicts],
        gradient_noise_scale=scale,
    )


def said(about: str, *arguments: Any, **keywords: Any) -> list[str]:
    return [advice.sentence for advice in advise(*arguments, **keywords) if advice.about == about]


def at_rates(*rates: float) -> list[TrialFacts]:
    """The first rate has the best value."""
    return [trial(number, 1.0 + number, learning_rate=rate) for number, rate in enumerate(rates)]


def test_few_completed_trials_are_too_few() -> None:
    found = advise(definition(), at_rates(1e-2, 9e-3, 8e-3))
    assert [(a.about, a.sentence) for a in found] == [
        ("search.trials", "3 completed trials are too few to judge the search space: run more trials.")
    ]


def test_a_best_trial_at_a_bound_asks_for_a_wider_range() -> None:
    assert said("learning_rate", definition(), at_rates(9.8e-3, 9e-3, 7e-3, 1e-3, 1e-4)) == [
        "learning_rate: the best value is at the upper bound (0.0098 of 0.0001…0.01): widen the range."
    ]
    assert said("learning_rate", definition(), at_rates(1.01e-4, 1.2e-4, 2e-4, 1e-3, 1e-2)) == [
        "learning_rate: the best value is at the lower bound (0.000101 of 0.0001…0.01): widen the range."
    ]


def test_one_lucky_trial_at_the_bound_is_no_reason() -> None:
    assert said("learning_rate", definition(), at_rates(9.8e-3, 8e-4, 1e-3, 1e-3, 1e-4)) == []
    assert said("learning_rate", definition(), at_rates(2e-3, 9.8e-3, 9.9e-3, 1e-3, 1e-4)) == []


def test_the_range_tests_bounds_are_the_ones_that_count() -> None:
    prepared = Preparation(learning_rate_bounds=(1e-4, 2e-3))
    (sentence,) = said(
        "learning_rate", definition(), at_rates(2e-3, 1.9e-3, 1.8e-3, 1e-3), preparation=prepared
    )
    assert "(0.002 of 0.0001…0.002)" in sentence
    assert "range test" in sentence


def test_a_bound_that_the_field_itself_has_cannot_be_widened() -> None:
    space = {"weight_decay": {"min": 0.0, "max": 0.1}, "lora_dropout": {"min": 0.0, "max": 0.5}}
    trials = [trial(n, 1.0 + n, weight_decay=0.0, lora_dropout=0.49) for n in range(4)]
    found = advise(definition(space), trials)
    assert [a.about for a in found] == ["lora_dropout"]


def test_choices_with_an_order_have_ends_too() -> None:
    space = {
        "lora_r": {"choices": [16, 4, 32, 8]},
        "lr_scheduler": {"choices": ["linear", "cosine", "constant"]},
    }
    trials = [trial(n, 1.0 + n, lora_r=32, lr_scheduler="constant") for n in range(4)]
    assert [a.sentence for a in advise(definition(space), trials)] == [
        "lora_r: the best value is the largest choice (32 of 4, 8, 16, 32): add larger ones."
    ]


def test_of_two_choices_neither_is_an_end() -> None:
    trials = [trial(n, 1.0 + n, lora_r=32) for n in range(4)]
    assert advise(definition({"lora_r": {"choices": [16, 32]}}), trials) == []


def test_rates_above_which_trials_come_to_grief_are_to_be_narrowed() -> None:
    bad = (Verdict.DIVERGED,)
    good = [trial(n, 1.0, learning_rate=1e-3) for n in range(10)]
    diverged = [
        trial(10 + n, None, *bad, state=AttemptState.DIVERGED, learning_rate=5e-3 + n * 5e-4)
        for n in range(6)
    ]
    assert said("learning_rate", definition(), [*good, *diverged]) == [
        "6 of 16 trials diverged, 6 of them among the 6 with a peak learning rate of 0.005 or more: lower"
        " the upper bound."
    ]


def test_grief_at_all_rates_is_not_put_down_to_the_rate() -> None:
    rates = (2e-4, 4e-4, 8e-4, 1.6e-3)
    good = [trial(n, 1.0, learning_rate=rate * 1.01) for n, rate in enumerate((*rates, *rates))]
    hot = [
        trial(10 + n, 1.5, Verdict.LEARNING_RATE_TOO_HIGH, learning_rate=rate) for n, rate in enumerate(rates)
    ]
    (sentence,) = said("learning_rate", definition(), [*good, *hot])
    assert sentence.startswith("4 of 12 trials oscillated or fell behind, at peak learning rates from 0.0002")


def test_one_diverged_trial_is_no_pattern() -> None:
    bad = trial(9, None, Verdict.DIVERGED, state=AttemptState.DIVERGED, learning_rate=9e-3)
    assert said("learning_rate", definition(), [*at_rates(1e-3, 1e-3, 1e-3, 1e-3), bad]) == []


def test_under_trained_best_trials_ask_for_more_epochs() -> None:
    searched = definition({"epochs": {"min": 1, "max": 3, "type": "int"}})
    trials = [trial(n, 1.0 + n, Verdict.UNDER_TRAINED, epochs=2) for n in range(4)]
    assert said("epochs", searched, trials) == [
        "epochs: 3 of the best 3 trials (0, 1, 2) are under-trained: search more than 3 epochs."
    ]
    fixed = definition(recipe={"epochs": 2})
    assert said("epochs", fixed, [trial(n, 1.0 + n, Verdict.UNDER_TRAINED, epochs=2) for n in range(4)]) == [
        "epochs: 3 of the best 3 trials (0, 1, 2) are under-trained: search more epochs than the recipe has"
        " (2)."
    ]
    # The worst ones being so says nothing.
    assert said("epochs", searched, [*at_rates(1e-3, 1e-3, 1e-3, 1e-3), trials[3]]) == []


def test_overfitting_best_trials_ask_for_fewer() -> None:
    trials = [trial(n, 1.0 + n, Verdict.OVERFITTING, rung=300 + 100 * n) for n in range(4)]
    (sentence,) = said("epochs", definition(), trials)
    assert sentence.startswith("epochs: 3 of the best 3 trials (0, 1, 2) overfit, from 300 examples on")


def test_idle_second_halves_ask_for_fewer_epochs() -> None:
    trials = [trial(n, 1.0 + n, Verdict.PLATEAUED_EARLY) for n in range(4)]
    assert said("epochs", definition(), trials) == [
        "epochs: 4 of 4 completed trials improved very little in their second half: fewer epochs are enough."
    ]


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (7.4, "about 7 examples, early in training: batches above that waste"),
        (20.0, None),
        (900.0, "batches up to that need fewer"),
    ],
)
def test_batch_sizes_are_held_against_the_best_trials_noise_scale(scale: float, expected: str | None) -> None:
    space = {"batch_size": {"choices": [8, 16, 32]}}
    trials = [trial(n, 1.0 + n, batch_size=16, scale=scale if n == 0 else 1.0) for n in range(4)]
    found = said("batch_size", definition(space), trials)
    assert found == [] if expected is None else expected in found[0]


def test_broken_constraints_and_memory_are_named() -> None:
    constrained = definition(constraints={"trainable_parameters": {"max": 5}})
    trials = [
        *at_rates(1e-3, 1e-3, 1e-3, 1e-3),
        trial(5, 0.1, feasible=False),
        trial(6, None, state=AttemptState.OUT_OF_MEMORY, lora_r=64),
        trial(7, None, state=AttemptState.OUT_OF_MEMORY, lora_r=64),
    ]
    assert said("constraints", constrained, trials) == [
        "1 of 5 completed trials broke a constraint (trainable_parameters) and cannot be the best: loosen"
        " the constraint, or remove the values that break it from the space."
    ]
    assert said("search.space", constrained, trials) == [
        "2 of 7 trials ran out of memory, alone and one example at a time (all with lora_r 64): remove that"
        " value, or use a larger GPU."
    ]


def test_the_winner_of_the_repeats_is_the_best_trial() -> None:
    trials = at_rates(1e-3, 1.1e-3, 9.9e-3, 9.8e-3, 9.7e-3)
    assert said("learning_rate", definition(), trials) == []
    trials = at_rates(1e-3, 9.9e-3, 9.8e-3, 9.7e-3)
    assert len(said("learning_rate", definition(), trials, winner=1)) == 1


def test_a_lead_that_may_be_luck_is_said() -> None:
    trials = at_rates(1e-3, 1e-3, 1e-3, 1e-3)
    assert len(said("repeats", definition(), trials, distinguishable=False)) == 1
    assert said("repeats", definition(), trials, distinguishable=True) == []
