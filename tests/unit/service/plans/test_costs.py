"""Memory and time of a plan, against numbers computed by hand."""

from __future__ import annotations

from typing import Any

from search_spaces.data_report import AdapterBytes, BaseBytes, ModelReport
from service.plans.costs import NO_TRIALS, plan_memory, plan_time
from service.plans.history import EarlierTrial
from service.plans.schemas import EarlierPeak, Seconds, Span, TrainingPlan
from tests.plan_cases import make_definition


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


def training() -> TrainingPlan:
    trial = {"batch_size": 4, "epochs": 1, "max_length": 64, "steps": 25, "tokens": 0, "evaluations": 1}
    span = {"at_least": 0, "at_most": 0}
    return TrainingPlan.model_validate(
        {
            "examples_per_epoch": {"at_least": 100, "at_most": 100},
            "estimated": False,
            "shortest": trial | {"examples": 100},
            "longest": trial | {"examples": 300},
            "examples": {"at_least": 1_200, "at_most": 3_600},
            "tokens": span,
            "evaluation_examples": span,
            "steps": [],
            "rungs": {
                "every_examples": None,
                "shared": [],
                "shared_count": 0,
                "pruning_algorithm": "none",
                "pruning": [],
                "pruning_count": 0,
            },
        }
    )


def test_memory_is_that_of_base_and_adapters() -> None:
    definition = make_definition(budget={"max_parallel_trials": 3})
    memory = plan_memory(definition, 12, MODEL, None, [earlier(), earlier(peak_memory_bytes=9_500)])
    assert memory.one_trial_bytes == Span(at_least=9_000 + 640, at_most=13_000 + 2_560)
    assert memory.parallel_bytes == Span(at_least=9_000 + 3 * 640, at_most=13_000 + 3 * 2_560)
    assert memory.earlier_peak == EarlierPeak(bytes=9_500, trials=2, devices=["cpu"])
    assert (memory.unknown, memory.earlier_peak_unknown) == (None, None)


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


def test_without_earlier_trials_no_time_is_told() -> None:
    time = plan_time(make_definition(), training(), None, [])
    assert (time.worker_seconds, time.examples_per_second, time.unknown) == (None, None, NO_TRIALS)
