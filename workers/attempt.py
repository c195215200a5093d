"""One attempt at a trial: its training, its reports, its best and last adapter, and how it ended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from workers.adapters import AdapterHost
from workers.contract import (
    OutcomeStatus,
    Progress,
    Report,
    TrialOrder,
    TrialOutcome,
)
from workers.datasets import Example
from workers.memory import peak_bytes
from workers.trial_run import TrialEndedError, TrialRun


class Attempt:
    """Joins an order to its run, and remembers what reports and the outcome are made of."""

    def __init__(
        self, order: TrialOrder, run: TrialRun, host: AdapterHost, name: str, eval_examples: Sequence[Example]
    ) -> None:
        """
        Args:
            order: What the coordinator wants.
            run: The trial, not yet stepped.
            host: Where its adapter lives.
            name: The adapter's name there.
            eval_examples: What every rung evaluates on.
        """
        self.order = order
        self.run = run
        self.name = name
        self._host = host
        self._eval_examples = eval_examples
        self._loss_since_rung = 0.0
        self._tokens_since_rung = 0
        self._best_rung: int | None = None
        self._best: Mapping[str, float] = {}
        self._final: Mapping[str, float] = {}
        self._folders: dict[str, str] = {}

    def step(self) -> Progress:
        """Takes one optimizer step.

        Raises:
            TrialEndedError: The trial diverged or does not fit.
        """
        self._host.activate(self.name)
        result = self.run.step()
        self._loss_since_rung += result.loss_sum
        self._tokens_since_rung += result.supervised_tokens
        return Progress(
            attempt_id=self.order.attempt_id,
            examples_seen=self.run.examples_seen,
            step=self.run.steps,
            train_loss=result.train_loss,
            learning_rate=result.learning_rate,
        )

    def report(self, rung: int) -> Report:
        """Evaluates at a rung and saves the adapter when it is the best so far.

        Raises:
            TrialEndedError: A metric is not finite, the objective's metric is missing, or the evaluation
                does not fit.
        """
        self._host.activate(self.name)
        metrics = self.run.evaluate(self._eval_examples).metrics()
        self._require_objective(metrics, rung)
        train_loss = self._loss_since_rung / self._tokens_since_rung
        self._loss_since_rung, self._tokens_since_rung = 0.0, 0
        self._final = metrics
        is_best = self._improves(metrics)
        if is_best:
            self._save("best")
            self._best_rung, self._best = rung, metrics
        return Report(
            attempt_id=self.order.attempt_id,
            rung=rung,
            examples_seen=self.run.examples_seen,
            step=self.run.steps,
            epoch=self.run.plan.epoch(self.run.steps),
            metrics=metrics,
            train_loss=train_loss,
            train_seconds=self.run.train_seconds,
            is_best=is_best,
        )

    def complete(self, device: torch.device) -> TrialOutcome:
        """The outcome of a trial that was trained to its end; saves its last adapter."""
        self._save("last")
        metric = self.order.objective.metric
        return self.outcome(
            OutcomeStatus.COMPLETED,
            f"Trained to the end on {self.run.examples_seen:,} examples; best {metric}"
            f" {self._best[metric]:.6g} at {self._best_rung:,} examples.",
            device,
        )

    def outcome(self, status: OutcomeStatus, reason: str, device: torch.device) -> TrialOutcome:
        """The outcome as things stand. Only a completed trial has a value."""
        completed = status is OutcomeStatus.COMPLETED
        return TrialOutcome(
            attempt_id=self.order.attempt_id,
            status=status,
            reason=reason,
            value=self._best[self.order.objective.metric] if completed else None,
            best_rung=self._best_rung,
            metrics=self._best,
            final_metrics=self._final,
            examples_seen=self.run.examples_seen,
            steps=self.run.steps,
            train_seconds=self.run.train_seconds,
            eval_seconds=self.run.eval_seconds,
            peak_memory_bytes=peak_bytes(device),
            best_adapter_dir=self._folders.get("best"),
            last_adapter_dir=self._folders.get("last"),
        )

    def retire(self) -> None:
        """Takes the trial's adapter off the base."""
        self._host.remove(self.name)

    def _require_objective(self, metrics: Mapping[str, float], rung: int) -> None:
        """Nothing is ever substituted for a metric: missing fails the trial, not finite is divergence."""
        metric = self.order.objective.metric
        if metric not in metrics:
            raise TrialEndedError(
                OutcomeStatus.FAILED,
                f"The evaluation at {rung:,} examples produced no {metric!r}, which is the objective;"
                f" it produced {', '.join(sorted(metrics))}.",
            )
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise TrialEndedError(
                    OutcomeStatus.DIVERGED,
                    f"Diverged: {name} is {value} in the evaluation at {rung:,} examples.",
                )

    def _improves(self, metrics: Mapping[str, float]) -> bool:
        if self._best_rung is None:
            return True
        objective = self.order.objective
        value, best = metrics[objective.metric], self._best[objective.metric]
        return value < best if objective.direction == "minimize" else value > best

    def _save(self, which: str) -> None:
        folder = Path(self.order.artifact_dir) / which
        self._host.save(self.name, folder)
        self._folders[which] = str(folder)
