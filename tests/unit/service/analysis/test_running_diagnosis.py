"""The diagnosis that follows trials as they end, against the one that is made of all of them at once."""

from __future__ import annotations

import random

import pytest

from search_spaces.recipe import Recipe
from service.analysis import diagnosis
from service.analysis.curves import Curve, Rung
from service.analysis.diagnosis import Peers, Verdict, diagnose
from service.analysis.running_diagnosis import RunningDiagnosis
from service.states import AttemptState

ENDS = (AttemptState.COMPLETED, AttemptState.COMPLETED, AttemptState.PRUNED, AttemptState.DIVERGED)


def drawn(dice: random.Random, number: int) -> Curve:
    """A trial that falls more or less far, of a recipe among few."""
    loss, rungs = 4.0, []
    for place in range(1, dice.randint(2, 7)):
        loss *= dice.uniform(0.5, 1.02)
        rungs.append(Rung(examples=100 * place, eval_loss=loss, train_loss=loss * 0.9))
    recipe = Recipe.build(
        {
            "learning_rate": dice.choice([1e-5, 1e-4, 1e-3]),
            "batch_size": dice.choice([4, 8]),
            "lora_r": dice.choice([4, 8]),
        }
    )
    return Curve(
        number=number,
        state=dice.choice(ENDS),
        reason="it ended",
        recipe=None if dice.random() < 0.1 else recipe,
        rungs=rungs,
        total_examples=600,
    )


@pytest.mark.parametrize("most_peers", [1000, 3])
@pytest.mark.parametrize("seed", range(6))
def test_it_says_at_every_end_what_all_trials_together_say(
    monkeypatch: pytest.MonkeyPatch, seed: int, most_peers: int
) -> None:
    monkeypatch.setattr(diagnosis, "MAX_PEERS", most_peers)
    dice = random.Random(seed)
    running, curves, told = RunningDiagnosis(), [], {}
    by_others = 0
    for number in range(60):
        curves.append(drawn(dice, number))
        news = running.add(curves[-1])
        told |= news
        by_others += any(of != number for of in news)
        ended = (AttemptState.COMPLETED, AttemptState.PRUNED)
        peers = Peers(curve for curve in curves if curve.state in ended)
        expected = {curve.number: diagnose(curve, peers) for curve in curves}
        assert dict(running.findings) == expected
        assert {n: told.get(n, []) for n in expected} == expected
        assert dict(RunningDiagnosis(curves).findings) == expected
    assert by_others > 0
    assert {f.verdict for of in told.values() for f in of} >= {
        Verdict.LEARNING_RATE_TOO_HIGH,
        Verdict.DIVERGED,
    }
