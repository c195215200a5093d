"""From an order and what is loaded to an attempt that can take part in passes."""

from __future__ import annotations

from typing import Any

import torch

from workers.artifacts.checkpoints import newest_usable
from workers.contract import TrialOrder, UnusableCheckpoint
from workers.data.datasets import TokenizedData
from workers.lora.adapters import Adapter
from workers.pack.attempt import Attempt
from workers.pack.evaluations.attempt import prepare_evaluation
from workers.pack.loaded import Loaded, SharedBase
from workers.pack.rate_sweep import RateSweepRun, SweepAttempt
from workers.pack.study_faults import faults_of_all
from workers.training.divergence import first_examples
from workers.training.objectives.base import Evaluation
from workers.training.objectives.registry import objective_of
from workers.training.trial_run import TrialRun

_COUNTING = (
    "seed",
    "loss",
    "focal_gamma",
    "huber_delta",
    "label_smoothing",
    "class_weights",
    "preference_beta",
    "simpo_gamma",
)
"""Fields of a recipe that an untrained trial's loss may depend on: the seed gives the order of its examples
and the numbers of its new head, the others say what is counted. An untrained LoRA changes nothing: B is 0."""

_MOST_STARTS = 64


def prepare(order: TrialOrder, loaded: Loaded) -> Attempt:
    """The attempt at its beginning, or at its newest checkpoint. Its adapter is on the base.

    Raises:
        AdapterError: The recipe's adapter cannot be put on this base.
        DoesNotFitError: One example does not fit.
        LossError: The trial's loss, one of the study's own, goes wrong.
        PluginError: It does in every trial.
        UnusableAdapterError: The adapter that is to be evaluated is gone, or does not fit.
        Exception: Whatever keeps the trial from starting; nothing of it stays on the base.
    """
    if order.evaluates is not None:
        return prepare_evaluation(order, loaded)
    base, examples = loaded.base, loaded.train.examples
    with faults_of_all(order, "loss", "class_weights"):
        weights = objective_of(base.host.base).class_weights(order.recipe, examples)
    adapter = base.host.add(f"attempt-{order.attempt_id}", order.recipe)
    try:
        trial = (order.recipe, adapter, examples)
        options: dict[str, Any] = {
            "start": _start(base, adapter, loaded.train),
            "micro_batch_size": order.micro_batch_size,
            "loss_scaled": base.host.base.compute_dtype == torch.float16,
            "class_weights": weights,
            "own_loss": loaded.own_loss,
        }
        whose: dict[str, Any] = {"recipe_key": loaded.recipe_key(order), "made_of": loaded.made_of(order)}
        measured = (base.host, loaded.evaluation.examples)
        attempt: Attempt
        if order.rate_sweep is None:
            run = TrialRun(*trial, divergence_factor=order.evaluation.divergence_factor, **options)
            attempt = Attempt(order, run, *measured, measures=loaded.measures, **whose)
        else:
            sweep = RateSweepRun(order.rate_sweep, *trial, **options)
            attempt = SweepAttempt(order, sweep, *measured, **whose)
        passed_over: list[UnusableCheckpoint] = []
        found = newest_usable(
            order.resume_from, **whose, objection=attempt.objection_to, pass_over=passed_over.append
        )
        attempt.passed_over = tuple(passed_over)
        if found is not None:
            attempt.restore(found[0])
    except BaseException:
        base.host.remove(adapter.name)
        raise
    return attempt


def _start(base: SharedBase, adapter: Adapter, train: TokenizedData) -> Evaluation:
    """What a trial starts from; measured once for all trials that start alike.

    Raises:
        DoesNotFitError: One example does not fit.
    """
    recipe = adapter.recipe
    key = (train.digest, *(getattr(recipe, name) for name in _COUNTING))
    start = base.starts.get(key)
    if start is None:
        start = base.passes.measure_start(adapter, first_examples(recipe, train.examples))
        while len(base.starts) >= _MOST_STARTS:
            del base.starts[next(iter(base.starts))]
        base.starts[key] = start
    return start
