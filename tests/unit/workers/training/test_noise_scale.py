"""The gradient noise scale: right where it is known, and the same in any pack and after any interruption."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from search_spaces.definition import ModelSpec
from search_spaces.recipe import Recipe
from search_spaces.trial_length import TrainingPlan
from tests.support.workers.packs import Recorder
from tests.support.workers.plain_training import mean_loss, plain_peft
from tests.support.workers.trials import (
    UNLIMITED,
    Together,
    new_run,
    random_examples,
    relative_difference,
    solo_run,
    trial_order,
)
from workers.base.base_model import LoadedBase, load_base
from workers.contract import Report
from workers.data.batches import epoch_order
from workers.lora.adapters import AdapterHost
from workers.training import trial_run
from workers.training.noise_scale import NoiseScale, measured_rows
from workers.training.shared_pass import SharedPasses
from workers.training.trial_run import TrialRun

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CPU = torch.device("cpu")
TRAIN = random_examples(24, seed=3, longest=30)
RECIPE = Recipe(learning_rate=3e-3, batch_size=8, epochs=4, lora_r=4, adam_epsilon=1e-4, seed=7)
"""Three steps an epoch, twelve in all, of which number 3 and number 11 are measured."""


@pytest.fixture(scope="module")
def base(tiny_base_dir: Path) -> LoadedBase:
    return load_base(ModelSpec(id=str(tiny_base_dir)), CPU)


@pytest.mark.parametrize(("rows", "part"), [(8, 1), (16, 4), (64, 32)])
def test_a_known_noise_scale_is_found(rows: int, part: int) -> None:
    """Rows' gradients are normal with a known mean and covariance.

    To first order the relative error of the ratio is that of its averages; their variances follow from those
    of quadratic forms of normal vectors. Four standard deviations are allowed, and they must be few percent.
    """
    steps, numbers = 4_000, 40
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(numbers, generator=generator, dtype=torch.float64) * 0.3
    deviation = torch.rand(numbers, generator=generator, dtype=torch.float64) + 0.5
    noise, signal = float((deviation**2).sum()), float((mean**2).sum())

    gradients = torch.randn(steps, rows, numbers, generator=generator, dtype=torch.float64) * deviation + mean
    scale = NoiseScale()
    for whole, some in zip(gradients.mean(1), gradients[:, :part].mean(1), strict=True):
        scale.update(part=part, part_norm=float(some.norm()), whole=rows, whole_norm=float(whole.norm()))

    squared = 2 * float((deviation**4).sum())
    along = 4 * float((mean**2 * deviation**2).sum())
    signal_variance = 2 * squared / (rows * (rows - part)) + along / (rows - part)
    noise_variance = squared * (rows + part) / (rows - part) + along / (1 / part - 1 / rows)
    error = math.sqrt(signal_variance / steps) / signal + math.sqrt(noise_variance / steps) / noise
    assert error < 0.03
    assert scale.value == pytest.approx(noise / signal, rel=4 * error)


def test_without_a_signal_or_a_measurement_there_is_no_scale() -> None:
    scale = NoiseScale()
    assert scale.value is None
    scale.update(part=1, part_norm=2.0, whole=4, whole_norm=1.0)  # as of pure noise
    assert scale.value is None
    scale.update(part=1, part_norm=2.0, whole=4, whole_norm=2.0)
    assert scale.value == pytest.approx(((4 - 1) / (1 - 1 / 4)) / ((4 * 1 - 4) / 3 + 4))


def test_every_eighth_step_is_measured_if_its_batch_is_whole_and_has_two_rows() -> None:
    def measured(examples: int, batch_size: int) -> dict[int, int]:
        plan = TrainingPlan(examples, batch_size, epochs=1, steps=30)
        parts = {step: measured_rows(plan, step) for step in range(30)}
        return {step: part for step, part in parts.items() if part is not None}

    assert measured(1_000, 16) == {3: 4, 11: 4, 19: 4, 27: 4}
    assert measured(25, 8) == {4: 2, 12: 2, 20: 2, 28: 2}  # each fourth step has one row
    assert measured(33, 8) == {3: 2, 11: 2, 20: 2, 27: 2}  # each fifth
    assert [measured(100, size).get(3) for size in (1, 2, 7, 25, 1_000)] == [None, 1, 1, 6, 25]


def test_the_norms_are_those_of_the_first_rows_and_of_the_whole_batch(
    base: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a rate that moves nothing, a plain script's gradients are those of every step."""
    taken: list[dict[str, Any]] = []
    monkeypatch.setattr(NoiseScale, "update", lambda self, **numbers: taken.append(numbers))
    still = RECIPE.model_copy(update={"learning_rate": 1e-30, "max_grad_norm": 1e-3})
    solo_run(base, still, TRAIN, token_budget=100)
    batches = (epoch_order(24, still.seed, 1)[:8], epoch_order(24, still.seed, 3)[16:])  # of steps 3 and 11
    with plain_peft(base, still) as parameters:

        def norm(rows: Sequence[int]) -> Any:
            gradients = torch.autograd.grad(mean_loss(base, [TRAIN[row] for row in rows]), parameters)
            return pytest.approx(torch.cat([one.flatten() for one in gradients]).norm().item(), rel=1e-4)

        expected = [
            {"part": 2, "part_norm": norm(rows[:2]), "whole": 8, "whole_norm": norm(rows)} for rows in batches
        ]
    assert taken == expected


def test_measuring_changes_no_number_beyond_rounding(
    base: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = solo_run(base, RECIPE, TRAIN)
    monkeypatch.setattr(trial_run, "measured_rows", lambda *args: None)
    plain = solo_run(base, RECIPE, TRAIN)
    assert measured.losses == pytest.approx(plain.losses, rel=1e-5)
    assert relative_difference(measured.weights, plain.weights) <= 1e-4


def test_it_is_the_same_alone_in_small_passes_and_beside_other_trials(base: LoadedBase) -> None:
    """Random tokens give gradients that are mostly noise, so the averages are compared, not their ratio."""

    def averages(mates: Sequence[Recipe] = (), **options: Any) -> list[float]:
        host = AdapterHost(base)
        together = Together(SharedPasses(host, token_budget=options.pop("token_budget", UNLIMITED)))
        run = new_run(host, RECIPE, TRAIN, **options)
        together.join(run)
        for number, mate in enumerate(mates):
            together.join(new_run(host, mate, TRAIN, name=f"mate-{number}"))
        together.finish()
        return run._noise.state()

    expected = averages()
    assert expected[-1] == 2
    mates = [RECIPE.model_copy(update=fields) for fields in ({"batch_size": 1, "seed": 1}, {"lora_r": 8})]
    for options in ({"micro_batch_size": 1}, {"token_budget": 100}, {"mates": mates, "token_budget": 150}):
        assert averages(**options) == pytest.approx(expected, rel=1e-3)  # type: ignore[arg-type]


def test_it_goes_on_to_the_bit_between_the_part_and_the_rest(base: LoadedBase) -> None:
    def finish(run: TrialRun, passes: SharedPasses) -> list[float]:
        while not run.finished:
            passes.finish_batch(run)
        return run._noise.state()

    host = AdapterHost(base)
    passes = SharedPasses(host, token_budget=UNLIMITED)
    run = new_run(host, RECIPE, TRAIN)
    while not (run.steps == 3 and len(run.waiting) == 6):
        passes.train([run])
    tensors, values = run.state()
    expected = finish(run, passes)
    host.remove("trial")
    run = new_run(host, RECIPE, TRAIN)
    run.restore(tensors, json.loads(json.dumps(values)))
    assert finish(run, passes) == expected
    assert expected[-1] == 2
    host.remove("trial")


@pytest.mark.parametrize("batch_size", [1, 4])
def test_reports_and_the_outcome_tell_it_where_there_is_one(
    tmp_path: Path, tiny_base_dir: Path, batch_size: int
) -> None:
    recipe = Recipe(learning_rate=1e-3, batch_size=batch_size, lora_r=2)
    order = trial_order(tmp_path, tiny_base_dir, recipe=recipe, every_examples=12)
    recorder = Recorder()
    outcome = recorder.outcome(order)
    first, last = (report.gradient_noise_scale for report in recorder.of(1, Report))
    assert first is None  # of three steps
    assert last == outcome.gradient_noise_scale
    assert (last is None) == (batch_size == 1)
