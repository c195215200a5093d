"""What objective, pruning, constraints, repeats, warm start and resources demand of each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from search_spaces.errors import Fault
from search_spaces.faults import shown
from search_spaces.parsing.draft import Draft
from search_spaces.pruning.reading import rung_faults
from search_spaces.pruning.specs import NoPruning
from search_spaces.tasks import METRICS
from search_spaces.values.time_of_day import nearest_timezone, timezone_names
from search_spaces.wording import counted

MIN_GPU_SHARE = 0.01
"""Ray counts in steps of 0.0001; nobody shares a GPU among more than a hundred workers."""

_SHARED_COSTS = ("train_seconds", "peak_memory_gb")
"""What trials of one pack cannot be charged for one by one."""
_LIMITS: Mapping[str, tuple[float, str]] = {
    "eval_loss": (0.0, "at least 0"),
    "perplexity": (1.0, "at least 1"),
    "mse": (0.0, "at least 0"),
    "mae": (0.0, "at least 0"),
    "bleu": (100.0, "at most 100"),
}
"""The best value that a metric can have. Of the other built-in ones it is 1, and `margin` has none."""
_MAX_SEED = 2**32 - 1
_EXAMPLE_TIME = '"06:00"'


def rungs_are_there(draft: Draft) -> Iterator[Fault]:
    """Whatever acts at rungs needs rungs."""
    if draft.evaluation is None:
        return
    every = draft.evaluation.every_examples
    if draft.pruning is not None:
        yield from rung_faults(draft.pruning, every)
    if draft.evaluation.overfit_rungs is not None and every is None and isinstance(draft.pruning, NoPruning):
        message = "is required with overfit_rungs: without it a trial is evaluated only at its end"
        allowed = "a whole number, at least 1"
        yield Fault(path="evaluation.every_examples", value=None, message=message, allowed=allowed)


def several_objectives(draft: Draft) -> Iterator[Fault]:
    """With costs a trial has several values, which not everything can compare."""
    if draft.objective is None or not draft.objective.costs:
        return
    if draft.pruning is not None and not isinstance(draft.pruning, NoPruning):
        yield Fault(
            path="pruning.algorithm",
            value=draft.pruning.algorithm,
            message="cannot be combined with objective.costs: a pruner compares one value, and a trial has"
            " several",
            allowed="none",
        )
    if draft.repeats is not None:
        yield Fault(
            path="repeats",
            value=shown(draft.repeats),
            message="cannot be combined with objective.costs: the study ends with a Pareto front, which has"
            " no single best recipe",
            allowed="no repeats",
        )
    if draft.algorithm == "cmaes":
        yield Fault(
            path="search.algorithm",
            value="cmaes",
            message="cannot be combined with objective.costs: it ranks trials by one value, and a trial has"
            " several",
            allowed="tpe, gp, random, qmc or grid",
        )
    if draft.warm_start is not None and draft.warm_start.as_ == "prior":
        yield Fault(
            path="warm_start.as",
            value="prior",
            message="cannot be combined with objective.costs: only the objective of an earlier trial is used,"
            " not its costs",
            allowed="enqueue",
        )


def costs_are_the_trials_own(draft: Draft) -> Iterator[Fault]:
    """Time and memory are measured of a worker; they are a trial's where it has the worker to itself."""
    if draft.resources is None or draft.resources.trials_per_worker == 1:
        return
    named = [f"objective.costs ({cost})" for cost in (draft.objective.costs if draft.objective else ())]
    shared = [name for name in named if any(cost in name for cost in _SHARED_COSTS)]
    shared += [f"constraints.{name}" for name in draft.constraints or () if name in _SHARED_COSTS]
    if shared:
        yield Fault(
            path="resources.trials_per_worker",
            value=draft.resources.trials_per_worker,
            message=f"must be 1 with {', '.join(shared)}: trials that share a worker share its time and"
            " memory, so these cannot be measured for one trial",
            allowed="1",
        )


def target_can_be_reached(draft: Draft) -> Iterator[Fault]:
    """A target beyond the best possible value would end no search."""
    if draft.budget is None or draft.objective is None or draft.budget.target_value is None:
        return
    target, metric = draft.budget.target_value, draft.objective.metric
    if metric not in METRICS or metric == "margin":
        return
    limit, allowed = _LIMITS.get(metric, (1.0, "at most 1"))
    if (target > limit) if draft.objective.direction == "maximize" else (target < limit):
        message = f"can never be reached: {metric} is always {allowed}"
        yield Fault(path="budget.target_value", value=target, message=message, allowed=allowed)


def deadline_is_known(draft: Draft) -> Iterator[Fault]:
    """A time of day means something in a timezone only, and without one the other two keys mean nothing."""
    budget = draft.budget
    if budget is None:
        return
    zone, action = budget.until_timezone, budget.until_action
    if zone not in timezone_names():
        yield Fault(
            path="budget.until_timezone",
            value=shown(zone),
            message="unknown time zone",
            allowed="an IANA name, such as Europe/Berlin or UTC",
            nearest=nearest_timezone(zone),
        )
    if budget.until is not None:
        return
    # An accepted definition has both keys, with what they are when left out.
    for key, value, default in (("until_timezone", zone, "UTC"), ("until_action", action, "pause")):
        if value != default:
            message = f"needs budget.until, which is missing; give a time of day, such as {_EXAMPLE_TIME}"
            yield Fault(
                path=f"budget.{key}", value=shown(value), message=message, allowed="with budget.until"
            )


def prior_is_learnt_from(draft: Draft) -> Iterator[Fault]:
    """Earlier results are given to a sampler that learns."""
    if draft.warm_start is None or draft.warm_start.as_ != "prior":
        return
    if draft.algorithm not in (None, "tpe", "gp"):
        message = f"gives earlier results to the sampler, but {draft.algorithm} does not learn from results"
        allowed = "enqueue, or search.algorithm tpe or gp"
        yield Fault(path="warm_start.as", value="prior", message=message, allowed=allowed)


def repeats_are_possible(draft: Draft) -> Iterator[Fault]:
    """There are as many recipes as are to be repeated, and as many seeds."""
    if draft.repeats is None:
        return
    total = draft.total_trials()
    if total is not None and draft.repeats.top_k > total:
        message = f"is more than the search has ({counted(total, 'trial')})"
        path = "repeats.top_k"
        yield Fault(path=path, value=draft.repeats.top_k, message=message, allowed=f"at most {total}")
    if draft.recipe is not None and draft.fixed("seed") + draft.repeats.seeds > _MAX_SEED:
        message = f"needs seeds above the largest seed: they follow recipe.seed ({draft.fixed('seed')})"
        allowed = f"at most {_MAX_SEED - draft.fixed('seed')}"
        yield Fault(path="repeats.seeds", value=draft.repeats.seeds, message=message, allowed=allowed)


def gpus_can_be_reserved(draft: Draft) -> Iterator[Fault]:
    """Ray reserves a share of one GPU, or whole ones."""
    if draft.resources is None:
        return
    gpus = draft.resources.gpus_per_worker
    if gpus != "auto" and (0 < gpus < MIN_GPU_SHARE or (gpus > 1 and not gpus.is_integer())):
        yield Fault(
            path="resources.gpus_per_worker",
            value=gpus,
            message="cannot be reserved by Ray, which reserves a share of one GPU or whole GPUs",
            allowed=f"auto, 0, {MIN_GPU_SHARE} to 1, or a whole number",
        )
