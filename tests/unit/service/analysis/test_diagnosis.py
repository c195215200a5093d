"""Verdicts on synthetic curves, each of one kind, and on the real ones of the quickstart's grid."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from search_spaces.recipe import Recipe
from service.analysis.curves import Curve, Rung
from service.analysis.diagnosis import Peers, Verdict, diagnose, tally
from service.states import AttemptState
from tests.support.checkout import ROOT

GRID = ROOT / "benchmarks/data/quickstart.json"


def curve(
    evals: Sequence[float],
    trains: Sequence[float] | None = None,
    *,
    state: AttemptState = AttemptState.COMPLETED,
    total: int | None = None,
    number: int = 0,
    objectives: Sequence[float] | None = None,
    **recipe: Any,
) -> Curve:
    """One rung every 100 examples; a constant rate unless the recipe says otherwise."""
    losses = [None] * len(evals) if trains is None else list(trains)
    others = [None] * len(evals) if objectives is None else list(objectives)
    return Curve(
        number=number,
        state=state,
        reason=f"it {state}",
        recipe=Recipe.build({"lr_scheduler": "constant", **recipe}),
        rungs=[
            Rung(examples=100 * place, eval_loss=loss, train_loss=train, objective=other)
            for place, (loss, train, other) in enumerate(zip(evals, losses, others, strict=True), 1)
        ],
        total_examples=total or 100 * len(evals),
    )


def falling(shape: Callable[[float], float], rungs: int = 10) -> list[float]:
    return [shape(place / rungs) for place in range(1, rungs + 1)]


def verdicts(*arguments: Any, **keywords: Any) -> list[Verdict]:
    return [finding.verdict for finding in diagnose(*arguments, **keywords)]


def test_a_diverged_trial_needs_no_rungs() -> None:
    (finding,) = diagnose(curve([], state=AttemptState.DIVERGED))
    assert (finding.verdict, finding.evidence) == (Verdict.DIVERGED, "it diverged")


@pytest.mark.parametrize(
    "state", [AttemptState.RUNNING, AttemptState.FAILED, AttemptState.CANCELLED, AttemptState.OUT_OF_MEMORY]
)
def test_a_trial_that_did_not_train_to_an_end_gets_none(state: AttemptState) -> None:
    assert verdicts(curve([5, 9, 5, 9, 5, 9, 5], state=state)) == []


@pytest.mark.parametrize("evals", [[], [2.0], [3.0, 2.0, 1.0]])
def test_few_rungs_say_nothing(evals: list[float]) -> None:
    (finding,) = diagnose(curve(evals))
    assert finding.verdict is Verdict.NOT_ENOUGH_RUNGS
    assert finding.evidence.startswith("1 evaluation;" if len(evals) == 1 else f"{len(evals)} evaluations;")


def test_a_trial_pruned_in_its_first_descent_is_not_judged_by_its_slope() -> None:
    early = curve(falling(lambda x: 5 - x), state=AttemptState.PRUNED, total=5000)
    (finding,) = diagnose(early)
    assert (finding.verdict, finding.evidence) == (
        Verdict.NOT_ENOUGH_RUNGS,
        "it ended after 1,000 of 5,000 examples, during its first descent",
    )


def test_a_late_first_evaluation_hides_the_beginning_unless_the_train_loss_shows_it() -> None:
    evals = [1.0, 0.7, 0.5, 0.4]
    assert verdicts(curve(evals)) == [Verdict.NOT_ENOUGH_RUNGS]
    assert verdicts(curve(evals, [5.0, 0.9, 0.6, 0.45])) == []


def test_a_straight_fall_is_a_rate_too_low() -> None:
    (finding,) = diagnose(curve(falling(lambda x: 5 - x)))
    assert finding.verdict is Verdict.LEARNING_RATE_TOO_LOW
    assert finding.evidence == (
        "eval loss 4.3 to 4 over the last 30% of the rate-weighted examples, which is 100% of its average"
        " slope"
    )


def test_a_bend_that_still_falls_is_under_trained() -> None:
    shape = falling(lambda x: 1 + 4 * math.exp(-3 * x))
    assert verdicts(curve(shape)) == [Verdict.UNDER_TRAINED]
    # Not its own fault: its pruner stopped it.
    assert verdicts(curve(shape, state=AttemptState.PRUNED)) == []


def test_a_curve_that_has_settled_gets_none() -> None:
    assert verdicts(curve(falling(lambda x: 1 + 4 * math.exp(-6 * x)))) == []


def test_a_decayed_rate_does_not_hide_that_a_curve_could_fall_on() -> None:
    # Linear in what the cosine leaves of the rate: flat at its end, over examples.
    shape = falling(lambda x: 5 - 2 * (x + math.sin(math.pi * x) / math.pi))
    assert shape[-2] - shape[-1] < 0.04
    assert verdicts(curve(shape, lr_scheduler="cosine")) == [Verdict.LEARNING_RATE_TOO_LOW]


def test_a_second_half_that_brings_nothing_is_a_plateau() -> None:
    (finding,) = diagnose(curve([5.0, 3.0, 2.2, 2.01, 2.0, 2.0, 2.0, 1.995, 2.0, 2.0]))
    assert (finding.verdict, finding.rung) == (Verdict.PLATEAUED_EARLY, 500)
    assert finding.evidence == "eval loss 2 at 500 examples, and 1.995 at best in the 500 examples after that"


def test_an_eval_loss_that_rises_while_the_train_loss_falls_is_overfitting() -> None:
    evals = [3.0, 2.0, 1.5, 1.6, 1.7, 1.8]
    (finding,) = diagnose(curve(evals, [3.5, 2.1, 1.4, 1.0, 0.8, 0.6]))
    assert (finding.verdict, finding.rung) == (Verdict.OVERFITTING, 300)
    assert finding.evidence == (
        "eval loss 1.5 at 300 examples and 1.8 at 600, while the train loss fell from 1.4 to 0.6"
    )
    # Both rise, or nobody knows: that is not overfitting.
    assert Verdict.OVERFITTING not in verdicts(curve(evals, [3.5, 2.1, 1.4, 1.5, 1.6, 1.7]))
    assert Verdict.OVERFITTING not in verdicts(curve(evals))


def test_a_trial_that_a_high_rate_threw_off_is_not_overfitting() -> None:
    # As measured on the quickstart: rate 0.01, batch 4, rank 32.
    evals = [0.482, 2.17, 2.55, 2.21, 1.44, 1.25, 1.22, 1.05]
    trains = [1.87, 1.36, 1.92, 1.9, 1.67, 1.57, 1.26, 1.13]
    assert verdicts(curve(evals, trains)) == [Verdict.LEARNING_RATE_TOO_HIGH]


@pytest.mark.parametrize("tail", [[1.6], [1.52, 1.51]])
def test_one_higher_evaluation_or_a_slight_rise_is_noise(tail: list[float]) -> None:
    evals = [3.0, 2.0, 1.7, 1.5, *tail]
    trains = falling(lambda x: 3 - 2 * x, len(evals))
    assert Verdict.OVERFITTING not in verdicts(curve(evals, trains))


def test_a_rising_loss_is_no_overfitting_while_another_objective_gets_better() -> None:
    evals, trains = [3.0, 2.0, 1.5, 1.6, 1.7, 1.8], [3.5, 2.1, 1.4, 1.0, 0.8, 0.6]
    rising, settled = [-0.4, -0.6, -0.7, -0.75, -0.8, -0.82], [-0.4, -0.6, -0.7, -0.7, -0.69, -0.7]
    assert verdicts(curve(evals, trains, objectives=rising)) == []
    assert verdicts(curve(evals, trains, objectives=settled)) == [Verdict.OVERFITTING]


def test_a_second_half_that_betters_another_objective_is_no_plateau() -> None:
    evals = [5.0, 3.0, 2.2, 2.01, 2.0, 2.0, 2.0, 1.995, 2.0, 2.0]
    rising = falling(lambda x: -0.3 - 0.5 * x)
    assert verdicts(curve(evals, objectives=rising)) == []
    assert verdicts(curve(evals, objectives=[-0.3, *[-0.8] * 9])) == [Verdict.PLATEAUED_EARLY]


def test_a_loss_that_is_as_good_as_zero_neither_overfits_nor_goes_up_and_down() -> None:
    """As that of a classifier that gets every row right."""
    evals = [0.3, 0.01, 0.0002, 0.001, 0.0003, 0.0012, 0.0004, 0.0013]
    trains = [1.4, 0.05, 0.002, 0.001, 0.002, 0.0008, 0.001, 0.0005]
    assert set(verdicts(curve(evals, trains))) <= {Verdict.PLATEAUED_EARLY}
    larger = [1000 * loss for loss in evals[2:]]
    assert verdicts(curve([3.0, 1.0, *larger], trains)) == [Verdict.LEARNING_RATE_TOO_HIGH]


def test_a_loss_that_goes_up_and_down_is_a_rate_too_high() -> None:
    (finding,) = diagnose(curve([2.4, 6.2, 5.6, 6.3, 4.5, 3.6, 3.4, 3.3]))
    assert finding.verdict is Verdict.LEARNING_RATE_TOO_HIGH
    assert finding.evidence == "the eval loss rose and fell again 2 times, at most from 2.4 to 6.2"


def test_a_train_loss_that_goes_up_and_down_is_a_rate_too_high() -> None:
    found = diagnose(curve([10.3, 8.7, 5.5, 5.1], [6.6, 9.4, 7.0, 5.2]))
    assert [f.evidence for f in found] == ["the train loss rose from 6.6 to 9.4 and fell again"]


def test_wiggles_within_the_noise_are_none() -> None:
    wiggling = [loss * (1.01 if place % 2 else 1.0) for place, loss in enumerate(falling(lambda x: 1 / x))]
    assert Verdict.LEARNING_RATE_TOO_HIGH not in verdicts(curve(wiggling))


@pytest.mark.parametrize(
    ("own", "gentler"),
    [([1.001], [1.0]), ([3.0], [2.0, 1.0]), ([0.6, 0.55, 0.502, 0.5], [0.5, 0.499, 0.499, 0.499])],
)
def test_to_be_behind_at_a_first_rung_or_by_a_hair_shows_nothing(
    own: list[float], gentler: list[float]
) -> None:
    hotter = curve(own, learning_rate=3e-3, number=1)
    peers = Peers([hotter, curve(gentler, learning_rate=1e-3, number=2)])
    assert Verdict.LEARNING_RATE_TOO_HIGH not in verdicts(hotter, peers)


def test_a_gentler_recipe_far_ahead_shows_a_rate_too_high() -> None:
    own = curve([3.4, 3.2, 2.8, 2.7], learning_rate=2e-2, batch_size=4, lora_r=32, number=1)
    gentler = curve([4.0, 1.0, 0.5, 0.4], learning_rate=1e-3, batch_size=8, lora_r=16, number=2)
    (finding,) = diagnose(own, Peers([own, gentler]))
    assert finding.verdict is Verdict.LEARNING_RATE_TOO_HIGH
    assert finding.evidence == (
        "eval loss 2.7 at 400 examples, where trial 2 had 0.4 with a rate of 0.001 instead of 0.02,"
        " no smaller batch and no larger rank"
    )
    assert Verdict.LEARNING_RATE_TOO_HIGH not in verdicts(gentler, Peers([own, gentler]))


@pytest.mark.parametrize("harsher", [{"batch_size": 2}, {"lora_r": 64}, {"optimizer": "sgd"}])
def test_a_recipe_that_is_harsher_in_anything_shows_nothing(harsher: dict[str, Any]) -> None:
    own = curve([3.4, 3.2, 2.8, 2.7], learning_rate=2e-2, batch_size=4, lora_r=32)
    other = {"learning_rate": 1e-3, "batch_size": 4, "lora_r": 32, **harsher}
    peers = Peers([own, curve([4.0, 1.0, 0.5, 0.4], number=1, **other)])
    assert Verdict.LEARNING_RATE_TOO_HIGH not in verdicts(own, peers)


def test_a_rate_is_not_too_low_where_a_lower_one_does_better() -> None:
    own = curve(falling(lambda x: 5 - x), learning_rate=2e-2)
    lower = curve(falling(lambda x: 5.1 - 1.2 * x), learning_rate=1e-3, number=1)
    assert verdicts(own) == [Verdict.LEARNING_RATE_TOO_LOW]
    assert verdicts(own, Peers([own, lower])) == [Verdict.UNDER_TRAINED]


def test_a_tally_counts_each_verdict_once_per_trial() -> None:
    straight = diagnose(curve(falling(lambda x: 5 - x)))
    assert tally([straight, straight, [], diagnose(curve([1.0]))]) == {
        Verdict.LEARNING_RATE_TOO_LOW: 2,
        Verdict.NOT_ENOUGH_RUNGS: 1,
    }


def test_verdicts_on_384_real_fine_tunes_follow_the_learning_rate() -> None:
    # No train losses are kept in the grid: trials of one epoch, whose first evaluation is at a quarter of
    # their training, are then judged by oscillation and by their peers only.
    table = json.loads(GRID.read_text())
    curves = []
    for number, (values, (ended, examples, rungs)) in enumerate(
        zip(itertools.product(*table["grid"].values()), table["trials"], strict=True)
    ):
        recipe = Recipe.build({**table["fixed"], **dict(zip(table["grid"], values, strict=True))})
        points = [Rung(examples=rung, eval_loss=loss) for rung, loss in rungs]
        curves.append(
            Curve(
                number=number,
                state=AttemptState(ended),
                recipe=recipe,
                rungs=points,
                total_examples=examples,
            )
        )
    peers = Peers(curves)
    found: dict[float, Counter[Verdict]] = {}
    for one in curves:
        assert one.recipe is not None
        told = found.setdefault(one.recipe.learning_rate, Counter())
        told.update(finding.verdict for finding in diagnose(one, peers))
    too_high = [found[rate][Verdict.LEARNING_RATE_TOO_HIGH] for rate in sorted(found)]
    too_low = [found[rate][Verdict.LEARNING_RATE_TOO_LOW] for rate in sorted(found)]
    # The best of all 384 has 4.6e-3.
    assert too_high[:6] == [0, 0, 0, 0, 0, 0]
    assert too_high[6] > 10
    assert too_high[7] > 30
    assert too_low == sorted(too_low, reverse=True)
    assert too_low[0] > 20
    assert too_low[6:] == [0, 0]
    assert sum(found[rate][Verdict.UNDER_TRAINED] for rate in found) > 100
