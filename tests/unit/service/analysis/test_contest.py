"""Equals dethrone nobody more often than one night in twenty, and what is better is found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from service.analysis import contest
from service.analysis.contest import Comparison, SeedNoise, compare, seed_noise
from service.analysis.row_statistics import statistic
from service.analysis.winner import Candidate, Run
from service.states import AttemptState

ROWS, ROW_NOISE, SEED_NOISE = 300, 0.15, 0.004
"""Eval rows, nats by which a row differs from adapter to adapter, and means from seed to seed: what
two fine-tunes of one recipe on a few thousand rows show."""
TRIALS = 16


def document(rows: np.ndarray[Any, Any], name: str | None = "ratio") -> dict[str, Any]:
    sums = [[float(row), 1.0] for row in rows]
    return {"statistic": name, "objective": sums, "loss": sums, "rows": len(rows), "data": "d"}


def decide(
    champion: np.ndarray[Any, Any],
    challenger: np.ndarray[Any, Any],
    *,
    candidates: int = 1,
    noise: SeedNoise | None = None,
    minimize: bool = True,
) -> Comparison:
    return compare(
        document(champion),
        document(challenger),
        values=(float(champion.mean()), float(challenger.mean())),
        metric="eval_loss",
        minimize=minimize,
        candidates=candidates,
        noise=noise,
        seed=0,
    )


def nights(seed: int, count: int, *, better: float, repeats: bool) -> int:
    """How many of so many nights dethrone the champion, whose adapter stays, on new eval rows each night.

    Each night's winner is the best of `TRIALS` equals on that night's own rows, as a search chooses it.
    """
    dice = np.random.default_rng(seed)
    champion = dice.normal(0.0, SEED_NOISE)
    dethroned = 0
    for _ in range(count):
        hard = dice.normal(1.0, 0.5, ROWS)
        own = hard + champion + dice.normal(0.0, ROW_NOISE / np.sqrt(2), ROWS)
        means = dice.normal(-better, SEED_NOISE, TRIALS)
        rows = hard + means[:, None] + dice.normal(0.0, ROW_NOISE / np.sqrt(2), (TRIALS, ROWS))
        best = int(rows.mean(axis=1).argmin())
        noise = None
        if repeats:
            fresh = [list(dice.normal(1.0, SEED_NOISE, 3)) for _ in range(3)]
            noise = seed_noise([candidate(values) for values in fresh])
        if decide(own, rows[best], candidates=TRIALS, noise=noise).better:
            dethroned += 1
            champion = means[best]
            if better:
                return 1
    return dethroned


def candidate(values: list[float]) -> Candidate:
    runs = [
        Run(trial_number=n, seed=n, state=AttemptState.COMPLETED, value=value)
        for n, value in enumerate(values)
    ]
    return Candidate(trial_number=0, value=values[0], runs=runs)


@pytest.fixture
def fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for these thresholds; the tail beyond is that of a t distribution in any case."""
    monkeypatch.setattr(contest, "DRAWS", 1_000)


@pytest.mark.usefixtures("fewer_draws")
@pytest.mark.parametrize("repeats", [False, True])
def test_equals_dethrone_in_at_most_one_night_of_twenty(repeats: bool) -> None:
    assert nights(1, 200, better=0.0, repeats=repeats) <= 10


@pytest.mark.usefixtures("fewer_draws")
@pytest.mark.parametrize("repeats", [False, True])
def test_an_improvement_of_a_third_of_a_rows_noise_is_found_in_nine_nights_of_ten(repeats: bool) -> None:
    found = [nights(seed, 1, better=0.05, repeats=repeats) for seed in range(100)]
    assert sum(found) >= 90


def test_the_decision_is_told_in_words_and_is_the_same_again() -> None:
    dice = np.random.default_rng(0)
    champion = dice.normal(0.845, 0.1, 200)
    challenger = champion - 0.033 + dice.normal(0.0, 0.05, 200)
    found = decide(champion, challenger, candidates=24)
    assert found.better
    assert found == decide(champion, challenger, candidates=24)
    assert found.low < found.lead < found.high
    assert found.sentence.startswith(
        f"eval_loss {challenger.mean():.4g} instead of {champion.mean():.4g} on 200"
    )
    assert "which must be below 0.0021 since it was chosen from 24 trials" in found.sentence


def test_a_higher_value_is_better_where_the_metric_is_maximized() -> None:
    dice = np.random.default_rng(0)
    champion = dice.random(200)
    challenger = champion + 0.1
    assert decide(champion, challenger, minimize=False).better
    assert not decide(champion, challenger).better


def test_a_lead_within_the_luck_of_seeds_is_none() -> None:
    dice = np.random.default_rng(0)
    champion = dice.normal(1.0, 0.1, 200)
    challenger = champion - 0.02 + dice.normal(0.0, 0.01, 200)
    assert decide(champion, challenger).better
    lucky = decide(champion, challenger, noise=SeedNoise(deviation=0.02, freedom=6))
    assert not lucky.better
    assert "seeds alone move it by" in lucky.sentence


def test_the_luck_of_seeds_is_pooled_over_recipes() -> None:
    noise = seed_noise([candidate([1.0, 1.2]), candidate([2.0, 2.2, 2.4]), candidate([3.0])])
    assert noise is not None
    assert (noise.freedom, noise.deviation) == (3, pytest.approx((0.02 / 3 + 0.08 / 3) ** 0.5))
    assert seed_noise([candidate([1.0])]) is None


def test_a_metric_that_no_sums_lead_to_is_decided_by_the_loss_beside_it() -> None:
    dice = np.random.default_rng(0)
    losses = dice.normal(1.0, 0.1, 200)

    def found(values: tuple[float, float]) -> Comparison:
        return compare(
            document(losses, None),
            document(losses - 0.05, None),
            values=values,
            metric="roc_auc",
            minimize=False,
            candidates=1,
            noise=None,
            seed=0,
        )

    assert found((0.8, 0.9)).better
    assert not found((0.9, 0.8)).better
    assert "eval_loss decides beside it" in found((0.9, 0.8)).sentence
    assert found((0.9, 0.8)).sentence.endswith("; roc_auc is not better")


def test_equal_rows_are_no_lead() -> None:
    rows = np.ones(50)
    found = decide(rows, rows)
    assert (found.better, found.p_value) == (False, 1.0)


@pytest.mark.parametrize("name", ["macro_f1", "macro_f1_of_all", "mcc", "pearson", "r2", "ratio"])
def test_a_statistic_of_no_rows_is_a_number(name: str) -> None:
    width = {"ratio": 2, "macro_f1": 6, "macro_f1_of_all": 6, "mcc": 5, "pearson": 6, "r2": 4}[name]
    assert np.isfinite(statistic(name, np.zeros((3, width)))).all()
