"""LLM.int8() on CUDA looks for outliers over all rows of a pass, so there a pass is of one trial."""

from __future__ import annotations

from tests.support.workers.gpu_trials import RECIPES, TRAIN, Bases, assert_same
from tests.support.workers.trials import UNLIMITED, new_run, solo_run, train_together
from workers.lora.adapters import AdapterHost
from workers.training.shared_pass import SharedPasses


def test_passes_are_of_one_trial(bases: Bases) -> None:
    host = AdapterHost(bases("int8", "float32"))
    assert not host.shares_passes
    assert not host.shares_evaluations
    recipes = list(RECIPES.items())[:3]
    runs = [new_run(host, recipe, TRAIN, name=name) for name, recipe in recipes]
    passes = SharedPasses(host, token_budget=UNLIMITED)
    assert [advance.run for advance in passes.train(runs)] == runs[:1]
    for run in runs:
        host.remove(run.adapter.name)


def test_a_trial_in_a_pack_equals_itself_alone(bases: Bases) -> None:
    """Its passes have the same rows as alone, so they find the same outliers."""
    base = bases("int8", "float32")
    trials = dict(list(RECIPES.items())[:3])
    together = train_together(base, trials, TRAIN)
    for name, recipe in trials.items():
        assert_same(together.trained[name], solo_run(base, recipe, TRAIN), 1e-3)
