"""Packs for tests: one that remembers its events, on a device that notes passes and runs out of memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.workers.trials import of_type, relative_difference
from workers.base.base_model import LoadedBase
from workers.contract import Event, Progress, Report, TrialOrder, TrialOutcome
from workers.data.batches import MicroBatch
from workers.pack import capacity
from workers.pack.cost_model import MemoryCost, PassCost
from workers.pack.pack import Pack
from workers.pack.probe import Costs
from workers.training.objectives import language

CPU = torch.device("cpu")

LATENCY_BOUND = PassCost(fixed_s=1.0, per_token_s=1e-9, per_trial_s=1e-9)
"""A pass costs the same whatever is in it, so every further trial is a gain."""


class Recorder:
    """A pack and the events it emitted."""

    def __init__(self, slots: int | None = 1) -> None:
        self.events: list[Event] = []
        self.pack = Pack(self.events.append, device=CPU, slots=slots, progress_interval_s=0.0)

    def run(self, *orders: TrialOrder) -> list[Event]:
        """Trains orders to their ends, each as soon as it is accepted; returns the events they made."""
        before = len(self.events)
        waiting = list(orders)
        while waiting or self.pack.running_attempts:
            while waiting and self.pack.accepts(waiting[0]):
                self.pack.admit(waiting.pop(0))
            self.pack.step()
        return self.events[before:]

    def run_until(self, happened: Callable[[], bool]) -> None:
        """Steps until something has happened, which must be before the last trial's end."""
        while not happened():
            assert self.pack.running_attempts
            self.pack.step()

    def outcome(self, order: TrialOrder) -> TrialOutcome:
        """Trains one order to its end."""
        (outcome,) = of_type(self.run(order), TrialOutcome)
        return outcome

    def of(self, attempt_id: int, kind: type) -> list[Any]:
        """The events of one attempt and one type so far."""
        return [event for event in of_type(self.events, kind) if event.attempt_id == attempt_id]

    def outcomes(self) -> dict[int, TrialOutcome]:
        """By attempt; at most one of each."""
        outcomes = of_type(self.events, TrialOutcome)
        by_attempt = {outcome.attempt_id: outcome for outcome in outcomes}
        assert len(by_attempt) == len(outcomes)
        return by_attempt


@dataclass(frozen=True)
class Pass:
    """One forward pass, and the backward pass that followed it where it trained."""

    trained: bool
    rows: int
    tokens: int
    """Of all rows together, padding included."""
    real_tokens: int


@dataclass
class Device:
    """Notes every pass, and refuses those that need more memory than there is.

    A pass needs so many bytes for each padded token, beside those for each parameter of the adapters that
    are on the base.
    """

    EVALUATED_TOKEN_BYTES = 1_000
    TRAINED_TOKEN_BYTES = 3_000
    RANK_BYTES = 16 * 2_048
    """Of a tiny base's adapter, for each rank: float32 weights, gradients and moments of 2,048 parameters."""

    limit_bytes: float = float("inf")
    passes: list[Pass] = field(default_factory=list)
    refused: int = 0
    fault: Callable[[MicroBatch, bool], object] = field(default=lambda batch, trained: None)
    """Called with every batch, and whether it is trained on; what it raises, the pass raises."""

    @classmethod
    def installed(cls, monkeypatch: pytest.MonkeyPatch, *, limit_bytes: float = float("inf")) -> Device:
        """In the place of the device that trials train on, evaluate on, and are probed on."""
        device = cls(limit_bytes)
        monkeypatch.setattr(language, "batch_losses", device.around(language.batch_losses))
        return device

    def around(self, batch_losses: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with memory that is limited."""

        def limited(
            base: LoadedBase, batch: MicroBatch, weights: torch.Tensor | None = None, **options: Any
        ) -> Any:
            trained = weights is not None
            if self.needed(base, batch.input_ids.numel(), trained=trained) > self.limit_bytes:
                self.refused += 1
                raise torch.OutOfMemoryError("the test's device is full")
            self.fault(batch, trained)
            padded, mask = batch.input_ids.numel(), batch.attention_mask
            real = padded if mask is None else int(mask.sum())
            self.passes.append(Pass(trained, batch.rows, padded, real))
            return batch_losses(base, batch, weights, **options)

        return limited

    def needed(self, base: LoadedBase, tokens: int, *, trained: bool) -> int:
        """Bytes of a pass of so many padded tokens beside the adapters that are on the base."""
        parameters = sum(p.numel() for name, p in base.model.named_parameters() if ".lora_" in name)
        token_bytes = self.TRAINED_TOKEN_BYTES if trained else self.EVALUATED_TOKEN_BYTES
        return tokens * token_bytes + parameters * self.RANK_BYTES // 2_048

    def of_kind(self, *, trained: bool) -> list[Pass]:
        """The training passes, or the evaluation ones."""
        return [one for one in self.passes if one.trained is trained]


def alone(order: TrialOrder) -> Recorder:
    """The same trial, in a pack of its own."""
    recorder = Recorder()
    recorder.run(replace(order, artifact_dir=f"{order.artifact_dir}-alone"))
    return recorder


def assert_equal_trials(
    together: Recorder, order: TrialOrder, *, repeats: bool = False, progress: bool = True
) -> None:
    """Losses, reports, outcome and final adapter of a trial are those of the same trial alone.

    Args:
        together: Where it was trained.
        order: The trial.
        repeats: Whether it may have trained some steps more than once.
        progress: Whether its loss at each step was recorded.
    """
    solo, number = alone(order), order.attempt_id
    steps, expected_steps = together.of(number, Progress), solo.of(number, Progress)
    reports, expected_reports = together.of(number, Report), solo.of(number, Report)
    if repeats:
        steps = list({step.step: step for step in steps}.values())
        reports = list({report.rung: report for report in reports}.values())
    if progress:
        assert [step.train_loss for step in steps] == pytest.approx(
            [step.train_loss for step in expected_steps], rel=1e-4
        )
    assert [(r.rung, r.step, r.is_best) for r in reports] == [
        (r.rung, r.step, r.is_best) for r in expected_reports
    ]
    for report, expected_report in zip(reports, expected_reports, strict=True):
        assert report.metrics == pytest.approx(expected_report.metrics, rel=1e-4)
        assert report.train_loss == pytest.approx(expected_report.train_loss, rel=1e-4)
    outcome, expected_outcome = together.outcomes()[number], solo.outcomes()[number]
    assert (outcome.status, outcome.best_rung) == (expected_outcome.status, expected_outcome.best_rung)
    assert outcome.value == pytest.approx(expected_outcome.value, rel=1e-4)
    assert relative_difference(final_weights(outcome), final_weights(expected_outcome)) < 1e-4


def final_weights(outcome: TrialOutcome) -> list[torch.Tensor]:
    """Of the last adapter, in the order of their names."""
    assert outcome.last_adapter_dir is not None
    tensors = load_file(Path(outcome.last_adapter_dir) / "adapter_model.safetensors")
    return [tensors[name] for name in sorted(tensors)]


def with_costs(monkeypatch: pytest.MonkeyPatch, time: PassCost, **memory: Any) -> None:
    """Puts costs in the place of what would be measured."""
    cost = MemoryCost(**{"base_bytes": 0, "bytes_per_token": 1.0, "chunk_bytes": 0} | memory)
    monkeypatch.setattr(capacity, "probe", lambda *args, **kwargs: Costs(time, cost))
