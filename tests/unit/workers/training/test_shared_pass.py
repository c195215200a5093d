"""In shared passes a fault is its trial's own: nobody else's numbers move, and memory is no trial's fault."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from search_spaces.definition import ModelSpec
from search_spaces.recipe import Recipe
from tests.support.workers.limited_memory import FailingAllocation, LimitedMemory, Where
from tests.support.workers.models import build_tiny_gpt2
from tests.support.workers.trials import (
    UNLIMITED,
    Together,
    Trained,
    matrices,
    new_run,
    random_examples,
    relative_difference,
    solo_run,
    train_together,
)
from workers.base.base_model import LoadedBase, checkpoint_activations, load_base
from workers.contract import OutcomeStatus
from workers.data.examples import Example
from workers.lora.adapters import AdapterHost
from workers.lora.multi_lora import Form
from workers.training.shared_pass import DoesNotFitError, SharedPasses
from workers.training.trial_run import TrialEndedError, TrialRun

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CPU = torch.device("cpu")
TOLERANCE = 1e-4
FORMS: tuple[Form, ...] = get_args(Form)
TRAIN = random_examples(16, seed=5, longest=24)
EVAL = random_examples(9, seed=6, longest=24)
LONGEST = max(len(example.input_ids) for example in (*TRAIN, *EVAL))
RECIPES = {
    "plain": Recipe(learning_rate=1e-2, batch_size=4, lora_r=4, adam_epsilon=1e-4),
    "dropping": Recipe(
        learning_rate=1e-2, batch_size=6, epochs=2, lora_r=8, lora_dropout=0.2, seed=1, adam_epsilon=1e-4
    ),
}
POISONED_TOKEN = 399
"""In no example but those of `poisoned`."""


@pytest.fixture(scope="module")
def base(tiny_base_dir: Path) -> LoadedBase:
    return load_base(ModelSpec(id=str(tiny_base_dir)), CPU)


@pytest.fixture(scope="module")
def alone(base: LoadedBase) -> dict[str, Trained]:
    """What each recipe comes to by itself."""
    return {name: solo_run(base, recipe, TRAIN) for name, recipe in RECIPES.items()}


def assert_equal(actual: Trained, expected: Trained) -> None:
    assert actual.ended is None
    assert actual.losses == pytest.approx(expected.losses, rel=TOLERANCE)
    assert relative_difference(actual.weights, expected.weights) <= TOLERANCE


@contextmanager
def pack(
    base: LoadedBase, recipes: dict[str, Recipe], **options: Any
) -> Iterator[tuple[SharedPasses, dict[str, TrialRun]]]:
    """Trials that have not begun."""
    host = AdapterHost(base)
    passes = SharedPasses(host, token_budget=options.pop("token_budget", UNLIMITED), **options)
    runs = {name: new_run(host, recipe, TRAIN, name=name) for name, recipe in recipes.items()}
    try:
        yield passes, runs
    finally:
        for name in runs:
            host.remove(name)


# --- what is not finite


def poisoned(examples: Sequence[Example]) -> list[Example]:
    """The same with one token replaced in half of them, so that some batches are sound."""
    changed = [example.input_ids.clone() for example in examples]
    for input_ids in changed[::2]:
        input_ids[1] = POISONED_TOKEN
    return [Example(ids, example.labels) for ids, example in zip(changed, examples, strict=True)]


@contextmanager
def embedded_as(base: LoadedBase, value: float) -> Iterator[None]:
    """Inside, the poisoned token's row of the input embedding is `value`."""
    row = base.model.get_input_embeddings().weight.data[POISONED_TOKEN]
    before = row.clone()
    row.fill_(value)
    try:
        yield
    finally:
        row.copy_(before)


def known(base: LoadedBase, examples: Sequence[Example]) -> list[Example]:
    """The same input with the labels that the base predicts: from here the loss can rise."""
    with torch.no_grad():
        predicted = [base.model(input_ids=e.input_ids[None]).logits[0].argmax(-1) for e in examples]
    ignored = torch.tensor([-100])
    return [
        Example(e.input_ids, torch.cat((ignored, ids[:-1])))
        for e, ids in zip(examples, predicted, strict=True)
    ]


def assert_diverged(trained: Trained, reason: str) -> None:
    """It ended with these words, and not by a step that was not finite."""
    assert isinstance(trained.ended, TrialEndedError)
    assert trained.ended.status is OutcomeStatus.DIVERGED
    assert re.search(reason, trained.ended.reason), trained.ended.reason


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_trials_beside_a_poisoned_and_an_exploding_one_end_as_alone(
    base: LoadedBase, alone: dict[str, Trained], value: float, form: Form
) -> None:
    exploding = Recipe(learning_rate=1e6, batch_size=2, epochs=3, lora_r=4)
    broken = Recipe(learning_rate=1e-3, batch_size=1, lora_r=2, target_modules="attention", seed=3)
    host = AdapterHost(base)
    together = Together(SharedPasses(host, token_budget=150, form=form))
    with embedded_as(base, value):
        sure = known(base, TRAIN)
        together.join(new_run(host, exploding, sure, name="exploding", divergence_factor=1.3))
        together.join(new_run(host, broken, poisoned(TRAIN), name="broken"))
        for name, recipe in RECIPES.items():
            together.join(new_run(host, recipe, TRAIN, name=name))
        trained = together.finish()
    for name in RECIPES:
        assert_equal(trained[name], alone[name])
    assert_diverged(
        trained["exploding"],
        r"^Diverged in step \d+ of 24, after \d+ training examples, at learning rate \d.*e\+05:"
        r" the train loss, smoothed over about 16 examples, is \d.*, above \d.*, the allowed multiple of \d",
    )
    assert_diverged(
        trained["broken"],
        r"^Diverged in step \d+ of 16, after \d+ training examples, at learning rate \d.*:"
        r" train loss nan, gradient norm nan; both must be finite\.$",
    )
    assert all(weight.isfinite().all() for weight in trained["broken"].weights)


@pytest.mark.parametrize("form", FORMS)
def test_a_trial_whose_adapter_overflowed_leaves_alone(
    base: LoadedBase, alone: dict[str, Trained], form: Form
) -> None:
    overflowing = Recipe(learning_rate=1e38, batch_size=5, lora_r=16, seed=3)
    recipes = {"overflowing": overflowing, **RECIPES}
    together = train_together(base, recipes, TRAIN, form=form, token_budget=150)
    for name in RECIPES:
        assert_equal(together.trained[name], alone[name])
    assert_diverged(together.trained["overflowing"], r"^Diverged in step 2 of 4, .*train loss nan, .*must be")
    assert not all(weight.isfinite().all() for weight in together.trained["overflowing"].weights)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_evaluation_beside_an_adapter_that_is_not_finite_is_as_alone(
    base: LoadedBase, monkeypatch: pytest.MonkeyPatch, value: float, form: Form
) -> None:
    with pack(base, {"overflown": RECIPES["dropping"], **RECIPES}) as (passes, runs):
        overflown, *others = runs.values()
        for run in others:
            passes.finish_batch(run)
        expected = [totals for run in others for totals in passes.evaluate([run], EVAL)]
        overflown.adapter.master.data[:100] = value
        monkeypatch.setattr(passes.host, "choose_form", lambda groups: form)
        first, *actual = passes.evaluate([overflown, *others], EVAL)
    assert math.isnan(first.loss_sum)
    for one, other in zip(actual, expected, strict=True):
        assert one.loss_sum == pytest.approx(other.loss_sum, rel=TOLERANCE)
        assert (one.correct, one.tokens) == (other.correct, other.tokens)


def test_a_pass_that_is_not_finite_for_one_trial_is_made_once(base: LoadedBase) -> None:
    """Nothing of the others is in its numbers, so that nobody has to be tried alone."""
    host = AdapterHost(base)
    runs = [new_run(host, RECIPES["plain"], TRAIN, name="sound")]
    passes, rows = SharedPasses(host, token_budget=UNLIMITED), []
    with embedded_as(base, math.nan):
        runs.append(new_run(host, RECIPES["plain"], [poisoned(TRAIN)[0]] * 16, name="broken"))
        embedding = base.model.get_input_embeddings()
        hook = embedding.register_forward_hook(lambda _module, _args, output: rows.append(len(output)))
        sound, broken = passes.train(runs)
        hook.remove()
    for run in runs:
        host.remove(run.adapter.name)
    assert len(rows) == 1
    assert (sound.ended, broken.step) == (None, None)
    assert sound.step is not None
    assert isinstance(broken.ended, TrialEndedError)


def test_rows_are_in_the_order_of_the_slots(base: LoadedBase) -> None:
    """So that adapters in neighbouring slots can be in one product."""
    recipes = {str(seed): RECIPES["plain"].model_copy(update={"seed": seed}) for seed in range(3)}
    with pack(base, recipes) as (passes, runs):
        advances = passes.train([runs[name] for name in ("2", "0", "1")])
    assert [advance.run.adapter.name for advance in advances] == ["0", "1", "2"]


def test_a_loss_that_overflows_in_the_middle_of_a_batch_ends_the_trial_as_it_was(base: LoadedBase) -> None:
    recipe = Recipe(learning_rate=1e-2, batch_size=8, lora_r=4)
    host = AdapterHost(base)
    run = new_run(host, recipe, poisoned(TRAIN), micro_batch_size=1)
    passes = SharedPasses(host, token_budget=UNLIMITED)
    before = matrices(run.adapter)
    with embedded_as(base, math.nan), pytest.raises(TrialEndedError, match="step 1 of 2, after 0 training"):
        passes.finish_batch(run)
    host.remove("trial")
    assert 0 < len(run.waiting) < 8
    assert run.steps == 0
    assert all(torch.equal(one, other) for one, other in zip(matrices(run.adapter), before, strict=True))


# --- memory


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("limit", [3 * LONGEST, LONGEST])
def test_out_of_memory_shrinks_the_passes_and_changes_no_number(
    base: LoadedBase, alone: dict[str, Trained], limit: int, where: Where, form: Form
) -> None:
    with LimitedMemory.of(base, limit, where) as memory:
        together = train_together(base, RECIPES, TRAIN, form=form)
    for name in RECIPES:
        assert_equal(together.trained[name], alone[name])
    assert memory.refused > 0
    assert 0 < memory.largest <= limit
    assert together.passes.token_budget <= 2 * limit


def test_an_evaluation_out_of_memory_is_repeated_in_smaller_passes(base: LoadedBase) -> None:
    with pack(base, RECIPES) as (passes, runs):
        for run in runs.values():
            passes.finish_batch(run)
        expected = passes.evaluate(list(runs.values()), EVAL)
        with LimitedMemory.of(base, 3 * LONGEST) as memory:
            actual = passes.evaluate(list(runs.values()), EVAL)
        assert memory.refused > 0
        assert passes.token_budget <= 3 * LONGEST
    for one, other in zip(actual, expected, strict=True):
        assert one.loss_sum == pytest.approx(other.loss_sum, rel=TOLERANCE)
        assert (one.correct, one.tokens) == (other.correct, other.tokens)


def test_one_row_that_does_not_fit_is_told_with_its_trial_and_nothing_has_moved(
    base: LoadedBase, alone: dict[str, Trained]
) -> None:
    host = AdapterHost(base)
    together = Together(SharedPasses(host, token_budget=100))
    for name, recipe in RECIPES.items():
        together.join(new_run(host, recipe, TRAIN, name=name))
    together.step()
    runs = list(together.live)
    before = [(run.steps, list(run.waiting), matrices(run.adapter)) for run in runs]
    with (
        LimitedMemory.of(base, 3),
        pytest.raises(DoesNotFitError, match=r"training at micro-batch 1, .* \d+ tokens") as error,
    ):
        together.step()
    assert error.value.run is runs[0]
    for run, (steps, waiting, weights) in zip(runs, before, strict=True):
        assert (run.steps, list(run.waiting)) == (steps, waiting)
        assert all(torch.equal(one, other) for one, other in zip(matrices(run.adapter), weights, strict=True))
    with (
        LimitedMemory.of(base, LONGEST - 1),
        pytest.raises(DoesNotFitError, match=f"one example of {LONGEST} tokens"),
    ):
        together.passes.evaluate(runs, EVAL)
    for name, trained in together.finish().items():
        assert_equal(trained, alone[name])


@pytest.mark.parametrize("form", FORMS)
def test_whichever_allocation_of_a_pass_fails_nothing_is_lost(base: LoadedBase, form: Form) -> None:
    examples = TRAIN[:8]

    def failing(at: int) -> tuple[Together, list[int]]:
        """Trials of which one, at least, has stepped; and the allocations by the end of each pass."""
        host = AdapterHost(base)
        together = Together(SharedPasses(host, token_budget=6 * LONGEST, form=form))
        for name, recipe in RECIPES.items():
            together.join(new_run(host, recipe, examples, name=name))
        counts = []
        with FailingAllocation(at) as memory:
            while not any(trained.steps for trained in together.trained.values()):
                together.step()
                counts.append(memory.count)
        return together, counts

    together, counts = failing(0)
    expected = together.finish()
    budget = together.passes.token_budget
    for at in sorted({*range(1, counts[-1], counts[-1] // 6), *counts}):
        together, _counts = failing(at)
        assert together.passes.token_budget < budget
        for name, trained in together.finish().items():
            assert_equal(trained, expected[name])


def test_another_error_is_not_taken_for_a_lack_of_memory_and_nothing_has_moved(
    base: LoadedBase, alone: dict[str, Trained]
) -> None:
    def broken(*_arguments: Any) -> None:
        raise RuntimeError("shapes do not match")

    host = AdapterHost(base)
    together = Together(SharedPasses(host, token_budget=100))
    for name, recipe in RECIPES.items():
        together.join(new_run(host, recipe, TRAIN, name=name))
    together.step()
    handle = base.model.model.layers[1].register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        together.step()
    handle.remove()
    assert together.passes.token_budget == 100
    for name, trained in together.finish().items():
        assert_equal(trained, alone[name])


# --- the size of passes


def test_a_pass_never_grows_beyond_what_was_found_to_fit(base: LoadedBase) -> None:
    with pack(base, RECIPES) as (passes, runs):
        passes.set_token_budget(50)
        assert passes.token_budget == 50
        passes.set_token_budget(UNLIMITED)
        with LimitedMemory.of(base, 2 * LONGEST):
            passes.evaluate(list(runs.values()), EVAL)
        fitting = passes.token_budget
        assert fitting <= 2 * LONGEST
        passes.set_token_budget(UNLIMITED)
        assert passes.token_budget == fitting
        passes.set_token_budget(fitting - 1)
        assert passes.token_budget == fitting - 1


def test_a_batch_that_writes_begins_with_more_tokens_and_leaves_training_passes_as_they_are(
    base: LoadedBase,
) -> None:
    tried: list[int] = []

    def work(tokens: int) -> int:
        tried.append(tokens)
        if tokens > 300:
            raise torch.OutOfMemoryError("the test's device is full")
        return tokens

    passes = SharedPasses(AdapterHost(base), token_budget=100)
    assert passes.within_memory(work, LONGEST, "a test", generates=True) == 200
    assert passes.within_memory(work, LONGEST, "a test", generates=True) == 200
    assert tried == [800, 400, 200, 200]
    assert passes.within_memory(work, LONGEST, "a test") == passes.token_budget == 100


def test_a_batch_that_writes_is_no_larger_than_a_training_pass_that_keeps_checkpoints(
    base: LoadedBase,
) -> None:
    passes = SharedPasses(AdapterHost(base), token_budget=100)
    checkpoint_activations(base.model, True)
    try:
        assert passes.within_memory(int, LONGEST, "a test", generates=True) == 100
    finally:
        checkpoint_activations(base.model, False)
    assert passes.within_memory(int, LONGEST, "a test", generates=True) == 800


@pytest.mark.parametrize(
    ("token_budget", "micro_batch_size", "expected"),
    [(UNLIMITED, None, 6), (UNLIMITED, 3, 3), (UNLIMITED, 64, 6), (4 * LONGEST, None, 4), (1, None, 1)],
)
def test_the_rows_of_a_pass_are_bounded_by_the_batch_the_order_and_the_budget(
    base: LoadedBase, token_budget: int, micro_batch_size: int | None, expected: int
) -> None:
    host = AdapterHost(base)
    run = new_run(host, RECIPES["dropping"], TRAIN, micro_batch_size=micro_batch_size)
    assert SharedPasses(host, token_budget=token_budget).most_rows(run) == expected
    host.remove("trial")


def test_each_trial_bears_its_share_of_a_pass(base: LoadedBase) -> None:
    with pack(base, RECIPES) as (passes, runs):
        passed: list[tuple[int, int]] = []

        def note(_layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            passed.append((inputs[0].shape[0], inputs[0].shape[1]))

        handle = base.model.model.layers[0].register_forward_pre_hook(note)
        live = list(runs.values())
        while live:
            passes.train(live)
            live = [run for run in live if not run.finished]
        handle.remove()
        assert sum(run.padded_tokens for run in runs.values()) == sum(
            rows * tokens for rows, tokens in passed
        )
        for run in runs.values():
            assert run.real_tokens == sum(len(e.input_ids) for e in TRAIN) * run.recipe.epochs
            assert run.train_seconds > 0
            assert run.eval_seconds == 0
        passes.evaluate(list(runs.values()), EVAL)
        seconds = {run.eval_seconds for run in runs.values()}
        assert len(seconds) == 1
        assert seconds.pop() > 0


# --- bases whose rows are not each other's strangers


def test_a_base_with_dropout_of_its_own_trains_one_trial_a_pass_as_alone(tmp_path: Path) -> None:
    folder = build_tiny_gpt2(tmp_path / "gpt2", dropout=0.2)
    base = load_base(ModelSpec(id=str(folder), quantization="none"), CPU)
    before = torch.get_rng_state()
    expected = {name: solo_run(base, recipe, TRAIN) for name, recipe in RECIPES.items()}
    together = train_together(base, RECIPES, TRAIN)
    for name in RECIPES:
        assert together.trained[name].losses == expected[name].losses
        assert_equal(together.trained[name], expected[name])
    assert together.waited
    assert torch.equal(torch.get_rng_state(), before)
    other = solo_run(base, RECIPES["plain"].model_copy(update={"seed": 9}), TRAIN)
    assert other.losses[0] != expected["plain"].losses[0]
