"""Memory and time of a plan, against numbers computed by hand."""

from __future__ import annotations

from typing import Any

import pytest

from search_spaces.data_report import AdapterBytes, BaseBytes, ModelReport
from service.plans.costs import NO_TRIALS, plan_memory, plan_time
from service.plans.history import EarlierTrial
from service.plans.schemas import EarlierPeak, Seconds, Span, TrainingPlan
from tests.support.service.plans import make_definition


def adapter(rank: int) -> AdapterBytes:
    return AdapterBytes(
        lora_r=rank,
        target_modules="all-linear",
        optimizer="adamw",
        trainable_parameters=10 * rank,
        bytes=160 * rank,
    )


MODEL = ModelReport(
    architecture="LlamaForCausalLM",
    parameters=10_000,
    quantizable_parameters=8_000,
    max_positions=None,
    bases=(
        BaseBytes(quantization="nf4", compute_dtype="bfloat16", bytes=9_000),
        BaseBytes(quantization="nf4", compute_dtype="float32", bytes=13_000),
    ),
    adapters=(adapter(4), adapter(16)),
)


def earlier(**changes: Any) -> EarlierTrial:
    values = {
        "device": "cpu",
        "examples": 100,
        "train_seconds": 50.0,
        "eval_seconds": 10.0,
        "peak_memory_bytes": 7_000,
        "same_data": False,
        "same_evaluation": False,
    }
    return EarlierTrial(**{**values, **changes})


def amount(at_least: int, at_most: int) -> dict[str, Any]:
    nothing = {"at_least": 0, "at_most": 0}
    examples = {"at_least": at_least, "at_most": at_most}
    return {"examples": examples, "tokens": nothing, "evaluation_examples": nothing}


def training(**stages: Any) -> TrainingPlan:
    trial = {"batch_size": 4, "epochs": 1, "max_length": 64, "steps": 25, "tokens": 0, "evaluations": 1}
    search = amount(1_200, 3_600)
    return TrainingPlan.model_validate(
        {
            "examples_per_epoch": {"at_least": 100, "at_most": 100},
            "estimated": False,
            "shortest": trial | {"examples": 100},
            "longest": trial | {"examples": 300},
            "sweeps": [trial | {"examples": examples} for examples in stages.pop("sweeps", ())],
            "search": search,
            "range_test": None,
            "repeats": None,
            "total": search,
            "steps": [],
            "rungs": {
                "every_examples": None,
                "shared": [],
                "shared_count": 0,
                "pruning_algorithm": "none",
                "pruning": [],
                "pruning_count": 0,
            },
            **stages,
        }
    )


def test_memory_is_that_of_base_and_adapters() -> None:
    definition = make_definition(budget={"max_parallel_trials": 3})
    memory = plan_memory(definition, 12, MODEL, None, [earlier(), earlier(peak_memory_bytes=9_500)])
    assert memory.one_trial_bytes == Span(at_least=9_000 + 640, at_most=13_000 + 2_560)
    assert memory.parallel_bytes == Span(at_least=9_000 + 3 * 640, at_most=13_000 + 3 * 2_560)
    assert memory.earlier_peak == EarlierPeak(bytes=9_500, trials=2, devices=["cpu"])
    assert (memory.unknown, memory.earlier_peak_unknown) == (None, None)


@pytest.mark.parametrize(
    ("kept", "least", "most"),
    [("never", 9_000, 13_000), ("auto", 9_000, 113_000), ("always", 59_000, 113_000)],
)
def test_decoded_weights_that_may_be_kept_count(kept: str, least: int, most: int) -> None:
    bases = tuple(
        base.model_copy(update={"decoded_bytes": more})
        for base, more in zip(MODEL.bases, (50_000, 100_000), strict=True)
    )
    definition = make_definition(resources={"keep_decoded": kept})
    memory = plan_memory(definition, 12, MODEL.model_copy(update={"bases": bases}), None, [])
    assert memory.one_trial_bytes == Span(at_least=least + 640, at_most=most + 2_560)


def test_what_is_not_known_of_memory_is_null_with_a_reason() -> None:
    memory = plan_memory(make_definition(), 12, None, "torch is not installed", [])
    assert (memory.one_trial_bytes, memory.unknown) == (None, "torch is not installed")
    assert (memory.earlier_peak, memory.earlier_peak_unknown) == (None, NO_TRIALS)


def test_time_is_the_median_earlier_trials() -> None:
    trials = [earlier(train_seconds=seconds) for seconds in (50.0, 100.0, 900.0)]
    time = plan_time(make_definition(), training(), None, trials)
    assert (time.examples_per_second, time.same_data, time.includes_evaluation) == (1.0, False, False)
    assert (time.shortest_trial, time.longest_trial) == (100.0, 300.0)
    assert time.worker_seconds == Seconds(at_least=1_200, at_most=3_600)
    assert time.wall_seconds is None


def test_trials_on_the_same_data_are_preferred_and_bring_their_evaluation() -> None:
    trials = [earlier(train_seconds=1.0), earlier(same_data=True, same_evaluation=True)]
    time = plan_time(make_definition(resources={"workers": 2}), training(), None, trials)
    assert (time.earlier_trials, time.same_data, time.includes_evaluation) == (1, True, True)
    assert time.shortest_trial == 60.0
    assert time.wall_seconds == Seconds(at_least=360, at_most=1_080)


def test_time_has_the_range_test_and_the_repeats_one_after_the_other() -> None:
    planned = training(sweeps=(200, 716), range_test=amount(916, 916), repeats=amount(300, 900))
    known = [earlier(same_data=True, same_evaluation=True)]
    time = plan_time(make_definition(resources={"workers": 4}), planned, None, known)
    # 0.6 s an example with its evaluation, and 0.5 s of a sweep, which has none.
    assert time.worker_seconds == Seconds(at_least=720 + 180 + 458, at_most=2_160 + 540 + 458)
    # Four workers: a quarter of the search; a repeat and a sweep are never shorter than one of them.
    assert time.wall_seconds == Seconds(at_least=180 + 60 + 358, at_most=540 + 180 + 358)


def test_without_earlier_trials_no_time_is_told() -> None:
    time = plan_time(make_definition(), training(), None, [])
    assert (time.worker_seconds, time.examples_per_second, time.unknown) == (None, None, NO_TRIALS)
