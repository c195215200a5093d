"""What `benchmarks.versus_sequential` compares: the same work, and the proof that it was."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from benchmarks.plain_script import tokenize
from benchmarks.sweep import QUICKSTART, Sweep, check_trials, loss_differences
from search_spaces.definition import DataSpec, ModelSpec
from workers.base.base_model import load_base
from workers.data.datasets import load_data


def completed(recipes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trials as the service shows them."""
    return [{"number": n, "state": "completed", "recipe": recipe} for n, recipe in enumerate(recipes)]


def test_both_halves_train_the_same_recipes() -> None:
    """The plain script's fixed and searched values make the service's recipes, in the same order."""
    sweep = Sweep.of([1, 2, 4, 8], trials=None, train_rows=600)
    work = sweep.plain_work()
    assert [{**work["recipe"], **point} for point in work["points"]] == sweep.recipes()
    assert len(work["points"]) == sweep.trials == 24


def test_a_part_of_the_grid_has_as_many_trials_of_each_batch_size() -> None:
    """A quick look keeps the mix of short and long trials."""
    sweep = Sweep.of([1, 2, 4, 8], trials=12, train_rows=60)
    assert Counter(recipe["batch_size"] for recipe in sweep.recipes()) == {1: 3, 2: 3, 4: 3, 8: 3}


@pytest.mark.parametrize(("trials", "rows"), [(5, 600), (48, 600), (24, 1), (24, 601)])
def test_a_sweep_that_cannot_be_is_refused(trials: int, rows: int) -> None:
    """Trials that the grid has not, and rows that the quickstart has not."""
    with pytest.raises(ValueError, match=r"no part of the grid|rows; the data has"):
        Sweep.of([1, 2, 4, 8], trials=trials, train_rows=rows)


def test_the_service_must_have_completed_every_recipe() -> None:
    """A trial that is missing, was pruned or had another recipe makes the comparison void."""
    recipes = Sweep.of([1, 2], trials=2, train_rows=60).recipes()
    trials = completed(recipes)
    check_trials(recipes, trials)
    pruned = [trials[0], {**trials[1], "state": "pruned"}]
    for wrong in (trials[:1], pruned, completed(recipes[::-1])):
        with pytest.raises(RuntimeError, match=r"completed trials|trained"):
            check_trials(recipes, wrong)


def test_losses_are_compared_at_every_rung() -> None:
    """The largest relative difference of a trial counts, wherever in its training it is."""
    plain = [{"number": 1, "eval_losses": [2.0, 1.0]}, {"number": 0, "eval_losses": [4.0]}]
    rungs = [{"rung": 30, "value": 2.5}, {"rung": 60, "value": 1.1}]
    trials = [{"number": 0, "rungs": [{"rung": 60, "value": 3.0}]}, {"number": 1, "rungs": rungs}]
    assert loss_differences(plain, trials) == {0: 0.25, 1: 0.25}


def test_halves_that_evaluated_differently_often_cannot_be_compared() -> None:
    """A missing evaluation is no agreement."""
    with pytest.raises(RuntimeError, match="evaluation losses"):
        loss_differences([{"number": 0, "eval_losses": [1.0, 2.0]}], [{"number": 0, "rungs": []}])


def test_both_halves_tokenize_alike() -> None:
    """The plain script's own tokenisation gives the service's tokens and labels."""
    base = load_base(ModelSpec(id=str(QUICKSTART / "base")), torch.device("cpu"))
    data = Sweep.of([1], trials=1, train_rows=40).definition()["data"]
    train, evaluation = load_data(DataSpec.model_validate(data), base)
    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART / "base")
    for name, theirs in (("train", train), ("eval", evaluation)):
        ours = tokenize(data[name], data[f"max_{name}_examples"], tokenizer, data["max_length"])
        assert len(ours) == len(theirs.examples)
        for row, example in zip(ours, theirs.examples, strict=True):
            assert torch.equal(row["input_ids"], example.input_ids)
            assert torch.equal(row["labels"], example.labels)
