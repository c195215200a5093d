"""A recipe's own `max_length` cuts its train data, and nobody's eval data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from search_spaces.recipe import Recipe
from tests.support.workers.packs import Device, Recorder, assert_equal_trials
from tests.support.workers.trials import trial_order
from workers.contract import OutcomeStatus, TrialOrder, TrialStarted
from workers.pack import loaded

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def order(
    folder: Path, base: Path, attempt_id: int, max_length: int | None, *, data_length: int = 64
) -> TrialOrder:
    """With the recipe's own length, and the study's."""
    recipe = Recipe(
        learning_rate=3e-3, batch_size=8, lora_r=2, max_length=max_length, adam_epsilon=1e-4, seed=attempt_id
    )
    made = trial_order(folder, base, attempt_id=attempt_id, recipe=recipe, every_examples=8)
    return replace(made, data=made.data.model_copy(update={"max_length": data_length}))


def longest(recorder: Recorder, attempt_id: int) -> int:
    """Tokens of a running trial's longest train example."""
    return max(len(example.input_ids) for example in recorder.pack._running[attempt_id].run.examples)


def test_trials_of_different_lengths_share_a_pack_and_their_evaluations(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = [
        order(tmp_path, tiny_base_dir, number, length) for number, length in ((1, None), (2, 40), (3, 41))
    ]
    device = Device.installed(monkeypatch)
    recorder = Recorder(slots=3)
    for each in orders:
        recorder.pack.admit(each)
    evaluated = [attempt.eval_examples for attempt in recorder.pack._running.values()]
    assert evaluated[0] is evaluated[1] is evaluated[2]
    assert longest(recorder, 1) > 41
    assert [longest(recorder, number) for number in (2, 3)] == [40, 41]
    truncated = [recorder.of(number, TrialStarted)[0].data.train_truncated for number in (1, 2, 3)]
    assert truncated[0] < truncated[2] <= truncated[1]
    before = len(device.of_kind(trained=False))
    recorder.run()
    rows = {one.rows for one in device.of_kind(trained=False)[before:]}
    assert max(rows) == 3 * 8  # the eval data of all three at once
    for each in orders:
        assert_equal_trials(recorder, each)


def test_a_recipe_may_ask_for_more_tokens_than_the_study_evaluates(
    tmp_path: Path, tiny_base_dir: Path
) -> None:
    recorder = Recorder()
    recorder.pack.admit(order(tmp_path, tiny_base_dir, 1, 44, data_length=40))
    assert longest(recorder, 1) == 44
    assert max(len(each.input_ids) for each in recorder.pack._running[1].eval_examples) == 40


@pytest.mark.parametrize(
    ("max_length", "reason"),
    [
        (8, "the recipe's max_length of 8 tokens cuts away everything that carries loss"),
        (300, "The recipe's max_length is 300 tokens, but the model"),
    ],
    ids=["too short", "longer than the base has positions for"],
)
def test_a_length_that_cannot_be_used_fails_its_own_trial_and_not_the_study(
    tmp_path: Path, tiny_base_dir: Path, max_length: int, reason: str
) -> None:
    recorder = Recorder()
    own = recorder.outcome(order(tmp_path, tiny_base_dir, 1, max_length))
    assert (own.status, own.fatal_to_study) == (OutcomeStatus.FAILED, False)
    assert reason in own.reason
    assert "data.max_length" not in own.reason
    everybodys = recorder.outcome(order(tmp_path, tiny_base_dir, 2, None, data_length=max_length))
    assert (everybodys.status, everybodys.fatal_to_study) == (OutcomeStatus.FAILED, True)
    assert recorder.outcome(order(tmp_path, tiny_base_dir, 3, 40)).status is OutcomeStatus.COMPLETED


def test_data_is_read_once_for_each_length(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    load_train = loaded.load_train
    monkeypatch.setattr(
        loaded,
        "load_train",
        lambda spec, *rest: [read.append(spec.max_length), load_train(spec, *rest)][1],
    )
    recorder = Recorder()
    for number, length in enumerate((None, 40, 64, 41, 40), start=1):
        recorder.run(order(tmp_path, tiny_base_dir, number, length))
    assert read == [64, 40, 41]
    assert len(recorder.outcomes()) == 5
    for number, length in enumerate((42, 43, 44, 45, 41), start=6):  # more than are kept
        recorder.run(order(tmp_path, tiny_base_dir, number, length))
    assert read[3:] == [42, 43, 44, 45, 41]
