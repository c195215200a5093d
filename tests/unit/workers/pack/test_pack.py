"""A pack turns an order into events, one outcome in the end, and leaves nothing behind.

Of one trial at a time; `test_shared_pack.py` has those that train together. One file, since every test
drives the same recorder of events through whole trials.
"""

from __future__ import annotations

import gc
import json
import math
import os
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch

from search_spaces.recipe import Recipe
from tests.support.workers.models import build_tiny_base, build_tiny_falcon
from tests.support.workers.packs import Device, Recorder
from tests.support.workers.trials import data_spec, of_type, trial_order
from workers.base.base_model import load_base
from workers.base.decoded_weights import is_decoded
from workers.contract import (
    Decision,
    OutcomeStatus,
    Preparing,
    Progress,
    Report,
    TrialOutcome,
    TrialStarted,
    Verdict,
)
from workers.pack import loaded
from workers.training.objectives.language import Totals

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

Metrics = dict[str, float]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def count_loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is loaded, in order: `base`, `train` and `eval` data."""
    loads: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            loads.append(name)
            return function(*args, **options)

        return call

    monkeypatch.setattr(loaded, "load_base", counted("base", loaded.load_base))
    for name in ("load_train", "load_eval"):
        monkeypatch.setattr(loaded, name, counted(name[5:], getattr(loaded, name)))
    return loads


def with_metrics(monkeypatch: pytest.MonkeyPatch, *sequence: Metrics) -> None:
    """Makes the trial's evaluations return these metrics, one after the other."""
    remaining = iter(sequence)
    monkeypatch.setattr(Totals, "metrics", lambda self: next(remaining))


def metrics(eval_loss: float, accuracy: float = 0.5) -> Metrics:
    return {"eval_loss": eval_loss, "perplexity": math.exp(eval_loss), "accuracy": accuracy}


def test_a_trial_starts_progresses_reports_at_its_rungs_and_completes(
    recorder: Recorder, tmp_path: Path, tiny_base_dir: Path
) -> None:
    recipe = Recipe(learning_rate=1e-2, batch_size=8, epochs=2, lora_r=4)
    order = trial_order(tmp_path, tiny_base_dir, recipe=recipe, every_examples=10)
    events = recorder.run(order)
    (started,) = of_type(events, TrialStarted)
    assert (started.total_examples, started.total_steps, started.device) == (48, 6, "cpu")
    assert started.data.in_words() == "24 train rows, 8 eval rows"
    assert [p.examples_seen for p in of_type(events, Progress)] == [8, 16, 24, 32, 40, 48]
    reports = of_type(events, Report)
    assert [(r.rung, r.examples_seen, r.step, r.epoch) for r in reports] == [
        (10, 16, 2, pytest.approx(2 / 3)),
        (20, 24, 3, 1.0),
        (30, 32, 4, pytest.approx(4 / 3)),
        (40, 40, 5, pytest.approx(5 / 3)),
        (48, 48, 6, 2.0),
    ]
    assert sorted(reports[0].metrics) == ["accuracy", "eval_loss", "perplexity"]
    (outcome,) = of_type(events, TrialOutcome)
    stages = [event.stage for event in events[: events.index(started)] if isinstance(event, Preparing)]
    assert stages == [
        f"loading the base {order.model.id} (nf4)",
        "reading and tokenising the train data",
        "reading and tokenising the eval data",
    ]
    assert events[-1] is outcome
    best = min(reports, key=lambda report: report.metrics["eval_loss"])
    assert (outcome.status, outcome.value, outcome.best_rung) == (
        OutcomeStatus.COMPLETED,
        best.metrics["eval_loss"],
        best.rung,
    )
    assert (outcome.metrics, outcome.final_metrics) == (best.metrics, reports[-1].metrics)
    assert (outcome.examples_seen, outcome.steps) == (48, 6)
    assert outcome.train_seconds > 0
    assert outcome.eval_seconds > 0
    assert outcome.peak_memory_bytes > 0
    assert outcome.reason.startswith("Trained to the end on 48 examples; best eval_loss ")
    folder = Path(order.artifact_dir)
    assert (outcome.best_adapter_dir, outcome.last_adapter_dir) == (
        str(folder / "best"),
        str(folder / "last"),
    )
    for which in ("best", "last"):
        config = json.loads((folder / which / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(tiny_base_dir)


def test_orders_say_whether_decoded_weights_are_kept(
    recorder: Recorder, tmp_path: Path, tiny_base_dir: Path
) -> None:
    """On a base that stays loaded, too. The trials end alike, to the bit."""
    losses = []
    for kept in ("never", "always", "auto", "never"):
        order = trial_order(tmp_path, tiny_base_dir, attempt_id=len(losses) + 1)
        losses.append(recorder.outcome(replace(order, keep_decoded=kept)).value)
        base = recorder.pack._shared.host.base
        layers = [m for m in base.model.modules() if isinstance(m, bnb.nn.Linear4bit)]
        assert {is_decoded(layer) for layer in layers} == {kept != "never"}
    assert losses[0] is not None
    assert len(set(losses)) == 1


@pytest.mark.parametrize("pads", [False, True])
def test_the_outcome_and_its_progress_tell_which_positions_held_a_token(
    recorder: Recorder, tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch, pads: bool
) -> None:
    device = Device.installed(monkeypatch)
    base = build_tiny_falcon(tmp_path / "falcon") if pads else tiny_base_dir
    events = recorder.run(trial_order(tmp_path, base))
    (outcome,) = of_type(events, TrialOutcome)
    passes = device.of_kind(trained=True)
    real, padded = sum(one.real_tokens for one in passes), sum(one.tokens for one in passes)
    assert outcome.useful_token_share == real / padded
    assert of_type(events, Progress)[-1].tokens == (real, padded)
    assert (real < padded) == pads


def test_the_report_averages_the_train_loss_since_the_last_rung(
    recorder: Recorder, tmp_path: Path, tiny_base_dir: Path
) -> None:
    # One example is 1 step is 1 rung here, so both losses are the same number.
    recipe = Recipe(learning_rate=1e-2, batch_size=1, lora_r=2)
    data = data_spec(tmp_path, train_rows=5)
    events = recorder.run(trial_order(tmp_path, tiny_base_dir, recipe=recipe, data=data, every_examples=1))
    assert [r.train_loss for r in of_type(events, Report)] == [
        p.train_loss for p in of_type(events, Progress)
    ]


@pytest.mark.parametrize(
    ("metric", "direction", "best"), [("eval_loss", "minimize", 16), ("accuracy", "maximize", 8)]
)
def test_the_best_rung_is_the_objectives(
    recorder: Recorder,
    tmp_path: Path,
    tiny_base_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    metric: str,
    direction: str,
    best: int,
) -> None:
    with_metrics(monkeypatch, metrics(3.0, 0.9), metrics(1.0, 0.8), metrics(2.0, 0.7))
    events = recorder.run(
        trial_order(tmp_path, tiny_base_dir, every_examples=8, metric=metric, direction=direction)
    )
    reports = of_type(events, Report)
    (outcome,) = of_type(events, TrialOutcome)
    assert [r.rung for r in reports if r.is_best][-1] == best == outcome.best_rung
    assert outcome.value == {8: 0.9, 16: 1.0}[best]
    assert outcome.final_metrics == metrics(2.0, 0.7)


def test_two_runs_of_an_order_give_the_same_numbers(tmp_path: Path, tiny_base_dir: Path) -> None:
    recipe = Recipe(learning_rate=1e-2, batch_size=8, lora_r=4, lora_dropout=0.2)
    values = [
        Recorder().outcome(
            trial_order(tmp_path / str(n), tiny_base_dir, recipe=recipe, data=data_spec(tmp_path))
        )
        for n in range(2)
    ]
    assert values[0].value == values[1].value


@pytest.mark.parametrize(
    ("decision", "status"),
    [(Decision.PRUNE, OutcomeStatus.PRUNED), (Decision.STOP, OutcomeStatus.CANCELLED)],
)
def test_a_verdict_ends_the_trial_between_two_steps_with_its_reason(
    recorder: Recorder, tmp_path: Path, tiny_base_dir: Path, decision: Decision, status: OutcomeStatus
) -> None:
    recorder.pack.admit(trial_order(tmp_path, tiny_base_dir, every_examples=8))
    recorder.run_until(lambda: bool(recorder.of(1, Report)))
    recorder.pack.apply(Verdict(attempt_id=1, decision=decision, reason="worse than the median"))
    recorder.pack.step()
    outcome = recorder.outcomes()[1]
    assert (outcome.status, outcome.reason, outcome.value) == (status, "worse than the median", None)
    assert (outcome.steps, outcome.examples_seen, outcome.best_rung) == (1, 8, 8)
    assert outcome.best_adapter_dir is not None
    assert outcome.last_adapter_dir is None
    assert recorder.pack.running_attempts == ()


def test_a_verdict_for_an_attempt_that_has_ended_has_no_effect(
    recorder: Recorder, tmp_path: Path, tiny_base_dir: Path
) -> None:
    recorder.run(trial_order(tmp_path, tiny_base_dir))
    recorder.pack.apply(Verdict(attempt_id=1, decision=Decision.PRUNE, reason="late"))
    assert recorder.outcome(trial_order(tmp_path, tiny_base_dir)).status is OutcomeStatus.COMPLETED


def test_trials_of_a_study_share_one_load_of_base_and_data(
    recorder: Recorder, tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = count_loads(monkeypatch)
    for attempt_id in (1, 2, 3):
        recorder.run(trial_order(tmp_path, tiny_base_dir, attempt_id=attempt_id))
    assert loads == ["base", "train", "eval"]
    assert recorder.pack.base == f"{tiny_base_dir} nf4"


def test_another_study_reads_the_data_anew_and_keeps_the_base(
    recorder: Recorder, tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = count_loads(monkeypatch)
    recorder.run(trial_order(tmp_path, tiny_base_dir))
    recorder.run(trial_order(tmp_path, tiny_base_dir, attempt_id=2, study_id="tomorrow"))
    assert loads == ["base", "train", "eval", "train", "eval"]


def test_another_quantization_and_a_changed_folder_load_the_base_anew(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = count_loads(monkeypatch)
    folder = build_tiny_base(tmp_path / "base")
    recorder.run(trial_order(tmp_path, folder))
    recorder.run(trial_order(tmp_path, folder, attempt_id=2, quantization="none"))
    os.utime(folder / "model.safetensors", ns=(0, 0))
    recorder.run(trial_order(tmp_path, folder, attempt_id=3, quantization="none"))
    assert loads == ["base", "train", "eval"] * 3


def test_the_older_base_is_gone_when_the_next_one_is_loaded(
    recorder: Recorder, tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def load(*args: Any, **options: Any) -> Any:
        alive.append(sum(model() is not None for model in models))
        base = load_base(*args, **options)
        models.append(weakref.ref(base.model))
        return base

    monkeypatch.setattr(loaded, "load_base", load)
    recorder.run(trial_order(tmp_path, tiny_base_dir))
    recorder.run(trial_order(tmp_path, tiny_base_dir, attempt_id=2, quantization="none"))
    assert alive == [0, 0]


def test_faults_of_data_and_model_fail_the_trial_and_are_fatal_to_the_study(
    recorder: Recorder, tmp_path: Path, tiny_base_dir: Path
) -> None:
    data = data_spec(tmp_path)
    Path(str(data.train)).write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    no_model = tmp_path / "no-model"
    no_model.mkdir()
    outcomes = [
        recorder.outcome(trial_order(tmp_path, tiny_base_dir, data=data)),
        recorder.outcome(trial_order(tmp_path, no_model, data=data, attempt_id=2)),
    ]
    assert [(o.status, o.fatal_to_study, o.value) for o in outcomes] == [
        (OutcomeStatus.FAILED, True, None)
    ] * 2
    assert "train-24.jsonl:2" in outcomes[0].reason
    assert "no-model" in outcomes[1].reason


def test_layers_that_do_not_exist_fail_the_trial_but_not_the_study(
    recorder: Recorder, tmp_path: Path, tiny_base_dir: Path
) -> None:
    outcome = recorder.outcome(
        trial_order(tmp_path, tiny_base_dir, recipe=Recipe(target_modules=("q_prj",), batch_size=8))
    )
    assert (outcome.status, outcome.fatal_to_study) == (OutcomeStatus.FAILED, False)
    assert "Did you mean 'q_proj'?" in outcome.reason


def test_an_unexpected_error_fails_that_trial_alone(
    recorder: Recorder,
    tmp_path: Path,
    tiny_base_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*args: object) -> None:
        raise ZeroDivisionError("somebody erred")

    with monkeypatch.context() as patch:
        Device.installed(patch).fault = broken
        outcome = recorder.outcome(trial_order(tmp_path, tiny_base_dir))
    assert (outcome.status, outcome.reason) == (OutcomeStatus.FAILED, "ZeroDivisionError: somebody erred")
    assert outcome.fatal_to_study is False
    assert "in broken" in caplog.text  # the traceback
    second = recorder.outcome(trial_order(tmp_path, tiny_base_dir, attempt_id=2))
    assert second.status is OutcomeStatus.COMPLETED


def test_a_broken_cuda_context_is_not_taken_for_a_trials_fault(
    recorder: Recorder, tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    recorder.pack.admit(trial_order(tmp_path, tiny_base_dir))
    Device.installed(monkeypatch).fault = broken
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        recorder.pack.step()
    assert recorder.outcomes() == {}


@pytest.mark.parametrize(
    "where", ["trial_run.AdapterOptimizer", "optimizers.adamw"], ids=["making it", "stepping it"]
)
def test_out_of_memory_in_the_optimizer_is_an_outcome_too(
    recorder: Recorder, tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def broken(*_args: object, **_options: object) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 20.00 MiB")

    monkeypatch.setattr(f"workers.training.{where}", broken)
    outcome = recorder.outcome(trial_order(tmp_path, tiny_base_dir))
    assert outcome.status is OutcomeStatus.OUT_OF_MEMORY
    assert "Tried to allocate 20.00 MiB" in outcome.reason


def test_a_missing_objective_fails_and_nothing_is_substituted(
    recorder: Recorder, tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_metrics(monkeypatch, {"eval_loss": 1.0})
    outcome = recorder.outcome(trial_order(tmp_path, tiny_base_dir, metric="accuracy", direction="maximize"))
    assert (outcome.status, outcome.value) == (OutcomeStatus.FAILED, None)
    assert outcome.reason == (
        "The evaluation at 24 examples produced no 'accuracy', which is the objective; it produced eval_loss."
    )


@pytest.mark.parametrize(
    "odd", [{"eval_loss": math.nan}, {"eval_loss": math.inf}, {"eval_loss": 800.0, "perplexity": math.inf}]
)
def test_a_metric_that_is_not_finite_is_divergence_and_is_not_reported(
    recorder: Recorder, tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch, odd: Metrics
) -> None:
    with_metrics(monkeypatch, metrics(2.0), {**metrics(2.0), **odd})
    events = recorder.run(trial_order(tmp_path, tiny_base_dir, every_examples=8))
    (outcome,) = of_type(events, TrialOutcome)
    assert (outcome.status, outcome.value, outcome.best_rung) == (OutcomeStatus.DIVERGED, None, 8)
    assert [r.rung for r in of_type(events, Report)] == [8]


def test_a_full_pack_admits_nobody(recorder: Recorder, tmp_path: Path, tiny_base_dir: Path) -> None:
    recorder.pack.admit(trial_order(tmp_path, tiny_base_dir))
    second = trial_order(tmp_path, tiny_base_dir, attempt_id=2)
    assert recorder.pack.accepts(second) is False
    with pytest.raises(RuntimeError, match="no free slot for attempt 2"):
        recorder.pack.admit(second)


def live_tensors() -> tuple[int, int]:
    """How many tensors are alive, and their bytes."""
    gc.collect()
    tensors = [o for o in gc.get_objects() if isinstance(o, torch.Tensor)]
    return len(tensors), sum(t.numel() * t.element_size() for t in tensors)


def test_twenty_trials_leave_no_tensor_behind(
    recorder: Recorder, tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_spec(tmp_path, train_rows=8, eval_rows=2)
    device = Device.installed(monkeypatch)

    def broken(*args: object) -> None:
        raise ZeroDivisionError("somebody erred")

    def train(attempt_id: int) -> None:
        recipe = Recipe(
            learning_rate=1e-2, batch_size=4, lora_r=2 + attempt_id % 3, lora_dropout=0.1 * (attempt_id % 2)
        )
        order = trial_order(tmp_path, tiny_base_dir, attempt_id=attempt_id, recipe=recipe, data=data)
        recorder.pack.admit(order)
        recorder.pack.step()
        if attempt_id % 4 == 0:
            recorder.pack.apply(Verdict(attempt_id=attempt_id, decision=Decision.PRUNE, reason="test"))
        elif attempt_id % 4 == 1:
            device.fault = broken
            recorder.pack.step()
        elif attempt_id % 4 == 2:
            device.limit_bytes = 0
            recorder.pack.step()
        recorder.run()
        device.fault, device.limit_bytes = (lambda batch, trained: None), math.inf

    for attempt_id in range(1, 5):
        train(attempt_id)
    expected = live_tensors()
    for attempt_id in range(5, 25):
        train(attempt_id)
    assert live_tensors() == expected
    statuses = Counter(outcome.status for outcome in recorder.outcomes().values())
    assert statuses == dict.fromkeys(("failed", "out_of_memory", "completed", "pruned"), 6)
