"""A trial's numbers in a pack are those it has alone, and those of a plain training loop.

Alone and in a pack differ in the order of float32 additions only, which is about 1e-7 of a number. Here
1e-4 is asked for, relative, of the loss at every step and of every matrix of the final adapter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file

from search_spaces.definition import ModelSpec
from search_spaces.recipe import Quantization, Recipe
from tests.support.workers.limited_memory import LimitedMemory, Where
from tests.support.workers.packs import Recorder
from tests.support.workers.plain_training import plain_loop
from tests.support.workers.trials import (
    Together,
    Trained,
    data_spec,
    new_run,
    random_examples,
    relative_difference,
    solo_run,
    train_together,
    trial_order,
)
from workers.base.base_model import LoadedBase, load_base
from workers.contract import Decision, OutcomeStatus, Progress, Report, TrialOrder, Verdict
from workers.lora.adapters import AdapterHost
from workers.lora.multi_lora import Form
from workers.pack import loaded
from workers.training.shared_pass import SharedPasses

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CPU = torch.device("cpu")
TOLERANCE = 1e-4
TRAIN = random_examples(22, seed=3, longest=30)


def make_recipe(**fields: Any) -> Recipe:
    """A recipe with an epsilon above rounding error.

    Adam divides a gradient by its own size. Where that is rounding error only, about 1e-8 here, a weight
    would move by as much as the learning rate in whatever direction.
    """
    return Recipe(adam_epsilon=1e-4, **fields)


RECIPES = {
    "tiny batch": make_recipe(learning_rate=1e-2, batch_size=1, epochs=0.5, lora_r=4),
    "rank-stabilised": make_recipe(
        learning_rate=3e-3,
        batch_size=4,
        epochs=2,
        weight_decay=0.1,
        lora_r=8,
        lora_alpha=16.0,
        use_rslora=True,
        lora_dropout=0.1,
        lr_scheduler="cosine",
        warmup_ratio=0.2,
    ),
    "attention": make_recipe(
        learning_rate=2e-2,
        batch_size=8,
        epochs=1.5,
        lora_r=2,
        lora_dropout=0.05,
        target_modules="attention",
        lr_scheduler="constant",
        seed=1,
    ),
    "two modules": make_recipe(
        learning_rate=5e-3,
        batch_size=2,
        weight_decay=0.01,
        lora_r=16,
        target_modules=("q_proj", "down_proj"),
        warmup_ratio=0.5,
    ),
    "rank one": make_recipe(
        learning_rate=1e-2,
        batch_size=16,
        epochs=4,
        lora_r=1,
        lora_alpha_ratio=4.0,
        lora_dropout=0.3,
        seed=2,
    ),
    "three modules": make_recipe(
        learning_rate=2e-3,
        batch_size=3,
        epochs=1.3,
        lora_r=8,
        use_rslora=True,
        target_modules=("gate_proj", "up_proj", "v_proj"),
        max_grad_norm=0.1,
        seed=3,
    ),
    "whole epochs": make_recipe(
        learning_rate=1e-2, batch_size=22, epochs=5, lora_r=4, adam_beta1=0.8, adam_beta2=0.95, seed=4
    ),
    "high rank": make_recipe(
        learning_rate=1e-3,
        batch_size=6,
        epochs=2,
        weight_decay=0.3,
        lora_r=32,
        lora_dropout=0.5,
        target_modules="attention",
        lr_scheduler="cosine",
        seed=2**31,
    ),
}
FORMS: tuple[Form, ...] = get_args(Form)


class Bases:
    """The tiny base in each quantization, and what each recipe comes to alone on it; made when asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bases: dict[Quantization, LoadedBase] = {}
        self._alone: dict[tuple[Quantization, str], Trained] = {}

    def base(self, quantization: Quantization) -> LoadedBase:
        if quantization not in self._bases:
            spec = ModelSpec(id=str(self._folder), quantization=quantization)
            self._bases[quantization] = load_base(spec, CPU)
        return self._bases[quantization]

    def alone(self, quantization: Quantization, name: str) -> Trained:
        if (quantization, name) not in self._alone:
            self._alone[quantization, name] = solo_run(self.base(quantization), RECIPES[name], TRAIN)
        return self._alone[quantization, name]


@pytest.fixture(scope="module")
def bases(tiny_base_dir: Path) -> Bases:
    return Bases(tiny_base_dir)


def assert_equal(actual: Trained, expected: Trained) -> None:
    assert actual.ended is None
    assert actual.losses == pytest.approx(expected.losses, rel=TOLERANCE)
    assert relative_difference(actual.weights, expected.weights) <= TOLERANCE


# --- alone, against a plain loop


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
def test_a_trial_alone_equals_a_plain_training_loop(
    bases: Bases, quantization: Quantization, name: str
) -> None:
    expected = plain_loop(bases.base(quantization), RECIPES[name], TRAIN)
    actual = bases.alone(quantization, name)
    assert actual.losses == pytest.approx(expected.losses, rel=TOLERANCE)
    assert [step.grad_norm for step in actual.steps] == pytest.approx(expected.norms, rel=TOLERANCE)
    assert [step.learning_rate for step in actual.steps] == pytest.approx(expected.rates, rel=1e-12)
    assert relative_difference(actual.weights, expected.weights) <= TOLERANCE
    assert expected.losses[-1] != expected.losses[0]


# --- in packs, against alone


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [2, 5, 8])
@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
def test_every_trial_of_a_pack_equals_itself_alone(
    bases: Bases, quantization: Quantization, size: int, form: Form
) -> None:
    trials = dict(list(RECIPES.items())[-size:])
    together = train_together(bases.base(quantization), trials, TRAIN, form=form)
    for name in trials:
        assert_equal(together.trained[name], bases.alone(quantization, name))
    assert not together.waited


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("token_budget", "waited"), [(300, False), (75, True)])
def test_small_passes_make_trials_accumulate_and_wait_and_change_no_number(
    bases: Bases, token_budget: int, waited: bool, form: Form
) -> None:
    trials = dict(list(RECIPES.items())[:5])
    together = train_together(bases.base("nf4"), trials, TRAIN, token_budget=token_budget, form=form)
    for name in trials:
        assert_equal(together.trained[name], bases.alone("nf4", name))
    assert (together.waited, together.accumulated) == (waited, True)


@pytest.mark.parametrize("form", FORMS)
def test_mates_that_join_and_leave_between_passes_change_no_number(bases: Bases, form: Form) -> None:
    host = AdapterHost(bases.base("nf4"), slots=4)
    together = Together(SharedPasses(host, token_budget=300, form=form))

    def join(name: str) -> None:
        together.join(new_run(host, RECIPES[name], TRAIN, name=name))

    join("attention")
    together.step()
    join("rank one")  # wraps further layers, while another batch is half done
    join("tiny batch")
    for _ in range(3):
        together.step()
    join("rank-stabilised")
    together.step()
    together.leave("rank one")
    join("two modules")
    together.finish()
    for name in ("attention", "tiny batch", "rank-stabilised", "two modules"):
        assert_equal(together.trained[name], bases.alone("nf4", name))
    left = together.trained["rank one"].losses
    assert left == pytest.approx(bases.alone("nf4", "rank one").losses[: len(left)], rel=TOLERANCE)
    assert together.accumulated


@pytest.mark.parametrize("form", FORMS)
def test_trials_in_slots_of_one_bank_each_equal_themselves_alone(bases: Bases, form: Form) -> None:
    """They differ in rows, rates, decay, clipping and dropout; one takes the slot of one that left."""
    changes: list[dict[str, Any]] = [
        {"batch_size": 4, "learning_rate": 3e-3},
        {"batch_size": 4, "max_grad_norm": 0.05, "seed": 1},
        {"batch_size": 4, "weight_decay": 0.3, "lora_dropout": 0.2, "seed": 2},
        {"batch_size": 8, "epochs": 3, "seed": 3},
        {"batch_size": 3, "adam_beta2": 0.95, "epochs": 0.5, "seed": 4},
        {"batch_size": 2, "optimizer": "sgd", "learning_rate": 0.1, "seed": 5},
        {"batch_size": 2, "optimizer": "rmsprop", "learning_rate": 1e-3, "seed": 6},
        {"batch_size": 5, "lora_alpha": 3.0, "seed": 7},
    ]
    recipes = {str(k): make_recipe(**{"lora_r": 4, **change}) for k, change in enumerate(changes)}
    base = bases.base("nf4")
    host = AdapterHost(base, slots=4)
    together = Together(SharedPasses(host, token_budget=2_000, form=form))
    runs = {name: new_run(host, recipe, TRAIN, name=name) for name, recipe in list(recipes.items())[:7]}
    for run in runs.values():
        together.join(run)
    assert [run.adapter.place for run in runs.values()] == [*((k, 0) for k in (1, 2)), (3, 0), (3, 1)] + [
        (4, row) for row in range(3)
    ]
    together.step()
    together.leave("5")
    late = new_run(host, recipes["7"], TRAIN, name="7")
    assert late.adapter.place == (4, 1)
    together.join(late)
    together.finish()
    for name in recipes.keys() - {"5"}:
        assert_equal(together.trained[name], solo_run(base, recipes[name], TRAIN))


# --- through orders


def orders(folder: Path, base_dir: Path) -> dict[str, TrialOrder]:
    """Trials of one study but for the third's data; its rows and the study are its own."""
    names = ["rank-stabilised", "attention", "three modules", "rank one"]
    other = data_spec(folder, train_rows=13, eval_rows=5)
    return {
        name: trial_order(
            folder,
            base_dir,
            attempt_id=number,
            study_id="other" if name == "three modules" else "study",
            data=other if name == "three modules" else data_spec(folder),
            recipe=RECIPES[name],
            every_examples=10,
        )
        for number, name in enumerate(names, start=1)
    }


def progress_of(recorder: Recorder, attempt_id: int) -> list[float]:
    return [progress.train_loss for progress in recorder.of(attempt_id, Progress)]


def assert_reports_equal(actual: Sequence[Report], expected: Sequence[Report]) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert (one.rung, one.examples_seen, one.step, one.epoch, one.is_best) == (
            other.rung,
            other.examples_seen,
            other.step,
            other.epoch,
            other.is_best,
        )
        assert one.metrics == pytest.approx(other.metrics, rel=TOLERANCE)
        assert one.train_loss == pytest.approx(other.train_loss, rel=TOLERANCE)


def saved(folder: str | None) -> list[torch.Tensor]:
    assert folder is not None
    return list(load_file(Path(folder) / "adapter_model.safetensors").values())


def test_orders_that_come_and_go_end_as_each_does_alone(tmp_path: Path, tiny_base_dir: Path) -> None:
    alone = Recorder(slots=1)
    together = Recorder(slots=3)
    for name in ("alone", "together"):
        (tmp_path / name).mkdir()
    lonely = orders(tmp_path / "alone", tiny_base_dir)
    sociable = orders(tmp_path / "together", tiny_base_dir)
    alone.run(*lonely.values())

    first, second, third, fourth = sociable.values()
    together.pack.admit(first)
    together.pack.step()
    together.pack.admit(second)
    together.pack.step()
    together.pack.admit(third)
    together.run_until(lambda: bool(together.of(second.attempt_id, Report)))
    together.pack.apply(Verdict(attempt_id=second.attempt_id, decision=Decision.PRUNE, reason="enough"))
    together.pack.step()
    together.run(fourth)

    for attempt_id, outcome in together.outcomes().items():
        expected = alone.outcomes()[attempt_id]
        reports, losses = together.of(attempt_id, Report), progress_of(together, attempt_id)
        if attempt_id == second.attempt_id:
            assert (outcome.status, outcome.reason) == (OutcomeStatus.PRUNED, "enough")
            assert 0 < len(reports) < len(alone.of(attempt_id, Report))
        else:
            assert outcome.status is OutcomeStatus.COMPLETED
            assert len(reports) == len(alone.of(attempt_id, Report))
            assert outcome.value == pytest.approx(expected.value, rel=TOLERANCE)
            assert (outcome.best_rung, outcome.steps) == (expected.best_rung, expected.steps)
            assert outcome.final_metrics == pytest.approx(expected.final_metrics, rel=TOLERANCE)
            for which in ("best_adapter_dir", "last_adapter_dir"):
                actual_weights, weights = saved(getattr(outcome, which)), saved(getattr(expected, which))
                assert relative_difference(actual_weights, weights) <= TOLERANCE
        assert_reports_equal(reports, alone.of(attempt_id, Report)[: len(reports)])
        assert losses == pytest.approx(progress_of(alone, attempt_id)[: len(losses)], rel=TOLERANCE)
    assert sorted(together.outcomes()) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("forward", r"^Out of memory evaluating one example of 5\d tokens"),
        ("backward", r"^Out of memory training at micro-batch 1, .* of 5\d tokens, with LoRA rank 1 "),
    ],
    ids=["forward", "backward"],
)
def test_only_the_trial_whose_row_does_not_fit_alone_is_out_of_memory(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch, where: Where, reason: str
) -> None:
    short = data_spec(tmp_path)
    rows = tmp_path / "long.jsonl"
    row = {"prompt": "please turn on the kitchen light" + " please" * 6, "completion": "yes"}
    rows.write_text(6 * (json.dumps(row) + "\n"))
    long = short.model_copy(update={"train": str(rows)})
    attempts = [
        trial_order(
            tmp_path,
            tiny_base_dir,
            attempt_id=number,
            study_id=f"study {data.train}",
            data=data,
            recipe=RECIPES[name],
            every_examples=10,
        )
        for number, (name, data) in enumerate(
            [("rank one", long), ("three modules", short), ("attention", short)], start=1
        )
    ]
    alone = Recorder(slots=1)
    alone.run(*attempts[1:])
    expected = {n: (outcome, saved(outcome.last_adapter_dir)) for n, outcome in alone.outcomes().items()}

    memory = LimitedMemory(50, where)  # the short rows have 28 to 46 tokens
    load = loaded.load_base

    def load_limited(spec: ModelSpec, device: torch.device, *limits: Any, **options: Any) -> LoadedBase:
        base = load(spec, device, *limits, **options)
        memory.watch(base)
        return base

    monkeypatch.setattr(loaded, "load_base", load_limited)
    together = Recorder(slots=3)
    together.run(*attempts)
    outcomes = together.outcomes()
    assert sorted(outcomes) == [1, 2, 3]
    assert outcomes[1].status is OutcomeStatus.OUT_OF_MEMORY
    assert re.search(reason, outcomes[1].reason), outcomes[1].reason
    for attempt_id, (outcome, weights) in expected.items():
        actual = outcomes[attempt_id]
        assert (actual.status, actual.best_rung, actual.steps) == (
            OutcomeStatus.COMPLETED,
            outcome.best_rung,
            outcome.steps,
        )
        assert actual.value == pytest.approx(outcome.value, rel=TOLERANCE)
        assert relative_difference(saved(actual.last_adapter_dir), weights) <= TOLERANCE
        assert progress_of(together, attempt_id) == pytest.approx(
            progress_of(alone, attempt_id), rel=TOLERANCE
        )
    assert memory.refused > 0
