"""What a study's trials take in memory and in time. Pure: from the report and from earlier trials."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from search_spaces.data_report import ModelReport
from search_spaces.definition import StudyDefinition
from service.plans.history import EarlierTrial
from service.plans.schemas import EarlierPeak, MemoryPlan, Seconds, Span, TimePlan, TrainingPlan

NO_TRIALS = "no trial of this task and model has completed on this server"


def plan_memory(
    definition: StudyDefinition,
    trials: int,
    model: ModelReport | None,
    unknown: str | None,
    earlier: Sequence[EarlierTrial] | None,
) -> MemoryPlan:
    """The memory that is certain, and the most that was measured.

    Args:
        definition: The study's.
        trials: Of its search.
        model: The base's report; None: there is none.
        unknown: Why there is none.
        earlier: Trials on this server; None: there is no server.
    """
    parallel = min(definition.budget.max_parallel_trials, trials)
    adapters = sorted(model.adapters, key=lambda adapter: adapter.bytes) if model is not None else []
    one = together = None
    if model is not None and model.bases and adapters:
        kept = definition.resources.keep_decoded
        least = min(base.bytes + (base.decoded_bytes if kept == "always" else 0) for base in model.bases)
        most = max(base.bytes + (base.decoded_bytes if kept != "never" else 0) for base in model.bases)
        small, large = adapters[0].bytes, adapters[-1].bytes
        one = Span(at_least=least + small, at_most=most + large)
        together = Span(at_least=least + parallel * small, at_most=most + parallel * large)
    elif model is not None:
        unknown = "no adapter could be made: see the problems"
    measured = [trial for trial in earlier or () if trial.peak_memory_bytes > 0]
    peak = None
    if measured:
        most = max(trial.peak_memory_bytes for trial in measured)
        peak = EarlierPeak(bytes=most, trials=len(measured), devices=_devices(measured))
    return MemoryPlan(
        bases=list(model.bases) if model is not None else [],
        smallest_adapter=adapters[0] if adapters else None,
        largest_adapter=adapters[-1] if adapters else None,
        one_trial_bytes=one,
        parallel_trials=parallel,
        parallel_bytes=together,
        unknown=unknown if one is None else None,
        earlier_peak=peak,
        earlier_peak_unknown=None if peak is not None else _no_history(earlier),
    )


def plan_time(
    definition: StudyDefinition,
    training: TrainingPlan | None,
    unknown: str | None,
    earlier: Sequence[EarlierTrial] | None,
) -> TimePlan:
    """How long workers are busy if all trials train as fast as the median earlier one, and none ends early.

    Earlier trials on the same data are preferred. Evaluation is in it only where they were evaluated alike,
    because its time was not measured by itself on other data. The range test's sweeps are not evaluated.

    Args:
        definition: The study's.
        training: What is trained; None: not known.
        unknown: Why it is not.
        earlier: Trials on this server; None: there is no server.
    """
    known = list(earlier or ())
    same_data = any(trial.same_data for trial in known)
    if same_data:
        known = [trial for trial in known if trial.same_data]
    evaluated = bool(known) and all(trial.same_evaluation for trial in known)
    per_example = _median(known, evaluated=evaluated)
    per_sweep_example = _median(known, evaluated=False)
    shortest = longest = total = wall = None
    if per_example is not None and per_sweep_example is not None and training is not None:
        shortest = training.shortest.examples * per_example
        longest = training.longest.examples * per_example
        trial = Seconds(at_least=shortest, at_most=longest)
        stages = [(_times(training.search.examples, per_example), trial)]
        if training.repeats is not None:
            stages.append((_times(training.repeats.examples, per_example), trial))
        if training.range_test is not None:
            sweep = max(sweep.examples for sweep in training.sweeps) * per_sweep_example
            work = _times(training.range_test.examples, per_sweep_example)
            stages.append((work, Seconds(at_least=sweep, at_most=sweep)))
        total = _together([work for work, _ in stages])
        workers = definition.resources.workers
        if workers != "auto":
            wall = _together([_wall(work, one, workers) for work, one in stages])
    reason = _no_history(earlier) if per_example is None else unknown
    return TimePlan(
        earlier_trials=len(known),
        same_data=same_data,
        includes_evaluation=evaluated,
        devices=_devices(known),
        examples_per_second=None if per_example is None else 1 / per_example,
        shortest_trial=shortest,
        longest_trial=longest,
        worker_seconds=total,
        wall_seconds=wall,
        unknown=reason if total is None else None,
    )


def _median(trials: Sequence[EarlierTrial], *, evaluated: bool) -> float | None:
    """Seconds a training example takes, with its share of the evaluation or without."""
    if not trials:
        return None
    return statistics.median(
        (trial.train_seconds + (trial.eval_seconds if evaluated else 0.0)) / trial.examples
        for trial in trials
    )


def _wall(work: Seconds, one: Seconds, workers: int) -> Seconds:
    """Of a stage, which no number of workers makes shorter than one of its trials."""
    return Seconds(
        at_least=max(work.at_least / workers, one.at_least), at_most=max(work.at_most / workers, one.at_most)
    )


def _together(stages: Sequence[Seconds]) -> Seconds:
    return Seconds(
        at_least=sum(stage.at_least for stage in stages), at_most=sum(stage.at_most for stage in stages)
    )


def _times(span: Span, seconds: float) -> Seconds:
    return Seconds(at_least=span.at_least * seconds, at_most=span.at_most * seconds)


def _devices(trials: Sequence[EarlierTrial]) -> list[str]:
    return sorted({trial.device for trial in trials if trial.device})


def _no_history(earlier: Sequence[EarlierTrial] | None) -> str:
    return (
        NO_TRIALS
        if earlier is not None
        else "the plan was made without a server, so no earlier trials are known"
    )
