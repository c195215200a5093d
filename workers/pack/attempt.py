"""One attempt at a trial: its training, its reports, its best and last adapter, and how it ended."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch

from search_spaces.values.artifact_urls import without_password
from workers.artifacts.checkpoints import Checkpoint, CheckpointError, write_checkpoint
from workers.artifacts.folders import ArtifactFolder, has_adapter
from workers.contract import (
    DataSummary,
    OutcomeStatus,
    Progress,
    Report,
    TrialOrder,
    TrialOutcome,
    TrialStarted,
    UnusableCheckpoint,
)
from workers.data.examples import AnyExample
from workers.device.memory import is_out_of_memory, peak_bytes
from workers.errors import ArtifactError
from workers.lora.adapters import AdapterHost
from workers.pack.cost_model import PackMember
from workers.pack.loaded import Loaded
from workers.pack.measures import Measures, check_metrics, named_metrics
from workers.training.objectives.base import Evaluation
from workers.training.optimizers import adapter_bytes
from workers.training.overfitting import OverfitWatch
from workers.training.rungs import rung_reached
from workers.training.trial_run import StepResult, TrialEndedError, TrialRun

_log = logging.getLogger(__name__)


class Attempt:
    """Joins an order to its run, and remembers what reports and the outcome are made of.

    Attributes:
        due: The rung that has been reached and not yet reported.
        reports: Those of all rungs so far. They go into the checkpoint: a worker may die with reports that no
            coordinator was there to fetch, and the next attempt goes on beyond their rungs.
        passed_over: Checkpoints of earlier attempts that it could not go on from.
        per_row: Whether it matters what each eval example comes to.
    """

    per_row = False

    def __init__(
        self,
        order: TrialOrder,
        run: TrialRun,
        host: AdapterHost,
        eval_examples: Sequence[AnyExample],
        *,
        recipe_key: str,
        made_of: Mapping[str, str] | None = None,
        measures: Measures | None = None,
    ) -> None:
        """
        Args:
            order: What the coordinator wants.
            run: The trial, not yet stepped.
            host: Where its adapter lives.
            eval_examples: What every rung evaluates on.
            recipe_key: What a checkpoint must have been made of to be this trial's.
            made_of: The parts of that, by name.
            measures: What the study measures beyond the task's own metrics.
        """
        self.order = order
        self.run = run
        self.eval_examples = eval_examples
        self.measures = measures or Measures()
        self.due: int | None = None
        self.reports: list[Report] = []
        self.passed_over: tuple[UnusableCheckpoint, ...] = ()
        self.predicted_memory_bytes: int | None = None
        self._host = host
        self._recipe_key = recipe_key
        self._made_of = dict(made_of or {})
        self._loss_since_rung = 0.0
        self._tokens_since_rung = 0
        self._best_rung: int | None = None
        self._best: Mapping[str, float] = {}
        self._final: Mapping[str, float] = {}
        self._folders: dict[str, str] = {}
        self._artifacts = ArtifactFolder(order.artifact_dir)
        self._checkpoint_failed = False
        self._overfitting = OverfitWatch(order.evaluation.overfit_rungs)

    @cached_property
    def member(self) -> PackMember:
        """What it asks of its pack."""
        run = self.run
        lengths = [example.length for example in run.examples]
        typical = sum(lengths) / len(lengths)
        return PackMember(
            tokens_per_step=max(1, round(typical * min(run.recipe.batch_size, len(lengths)))),
            longest_tokens=max(lengths),
            adapter_bytes=adapter_bytes(
                run.adapter.trainable_parameters, run.recipe, accumulates=run.recipe.batch_size > 1
            ),
        )

    @property
    def checkpoint_dir(self) -> str:
        """Where its checkpoints go: a path or a URL."""
        return self._artifacts.checkpoint

    @property
    def value(self) -> float:
        """What the trial is worth once it is completed: the objective at the best rung."""
        return self._best[self.order.objective.metric]

    def started(self, loaded: Loaded, device: torch.device) -> TrialStarted:
        """What is known before the next optimizer step: the first, or the one after the checkpoint."""
        run, train, evaluation = self.run, loaded.train, loaded.evaluation
        return TrialStarted(
            attempt_id=self.order.attempt_id,
            total_examples=run.plan.total_examples,
            total_steps=run.plan.total_steps,
            micro_batch_size=loaded.base.passes.most_rows(run),
            device=str(device),
            trainable_parameters=run.adapter.trainable_parameters,
            resumed_at_examples=run.examples_seen,
            passed_over=self.passed_over,
            data=DataSummary(
                train_rows=train.rows,
                train_skipped=train.skipped,
                train_truncated=train.truncated,
                eval_rows=evaluation.rows,
                eval_skipped=evaluation.skipped,
                eval_truncated=evaluation.truncated,
            ),
        )

    def took(self, step: StepResult) -> Progress:
        """Takes note of an optimizer step. At a rung it writes a checkpoint, and the rung is due.

        The checkpoint comes before the rung's evaluation: a trial resumed from it reports the rung again,
        while one made after it could leave a report out that nobody had received.
        """
        run, order = self.run, self.order
        self._loss_since_rung += step.loss_sum
        self._tokens_since_rung += step.supervised_tokens
        self.due = rung_reached(
            run.plan.examples_seen(run.steps - 1),
            run.examples_seen,
            every=order.evaluation.every_examples,
            total=run.plan.total_examples,
        )
        if self.due is not None:
            self.checkpoint_if_possible()
        return self.progress(step)

    def progress(self, step: StepResult) -> Progress:
        """Where the trial is after a step."""
        return Progress(
            attempt_id=self.order.attempt_id,
            examples_seen=self.run.examples_seen,
            step=self.run.steps,
            train_loss=step.train_loss,
            learning_rate=step.learning_rate,
            tokens=(self.run.real_tokens, self.run.padded_tokens),
        )

    def checkpoint(self) -> None:
        """Writes all that is needed to resume elsewhere.

        Raises:
            ArtifactError: It cannot be written.
            CheckpointError: It would not come back as it is.
        """
        tensors, run = self.run.state()
        state = {
            "recipe_key": self._recipe_key,
            "made_of": self._made_of,
            "run": run,
            "due": self.due,
            "loss_since_rung": self._loss_since_rung,
            "tokens_since_rung": self._tokens_since_rung,
            "best_rung": self._best_rung,
            "best": dict(self._best),
            "final": dict(self._final),
            "folders": self._folders,
            "overfitting": self._overfitting.state(),
            "reports": [{**asdict(report), "metrics": dict(report.metrics)} for report in self.reports],
        }
        with self._artifacts.writing("checkpoint"):
            write_checkpoint(self.checkpoint_dir, tensors, state)

    def checkpoint_if_possible(self) -> None:
        """Writes a checkpoint, or logs why it cannot be written: the trial goes on without one.

        Disk or memory may be full, or the loss that the trial started from is not finite, for which JSON has
        no number. It is logged once, until a checkpoint can be written again.
        """
        try:
            self.checkpoint()
        except (ArtifactError, CheckpointError) as error:
            reason = str(error)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = f"out of memory: {error}"
        else:
            self._checkpoint_failed = False
            return
        if not self._checkpoint_failed:
            self._checkpoint_failed = True
            _log.warning("no checkpoint of attempt %d: %s", self.order.attempt_id, reason)

    def objection_to(self, checkpoint: Checkpoint) -> str | None:
        """Why the checkpoint does not lead to the outcome that the trial would have had without it.

        It must have been made on this base, of which the recipe's key covers the name, not the weights. And
        the best adapter so far must be there still, since no later one takes its place.

        Returns:
            What is wrong with it, in words; None: nothing.

        Raises:
            ArtifactError: The storage does not say whether the adapter is there.
        """
        state: Mapping[str, Any] = checkpoint.state["run"]  # type: ignore[assignment]
        folders: Mapping[str, str] = checkpoint.state["folders"]  # type: ignore[assignment]
        if not self.run.began_like(state):
            return "the trial started at a different loss, so the base's weights have changed"
        if gone := [place for place in folders.values() if not has_adapter(place)]:
            return f"the trial's best adapter is gone from {without_password(gone[0])}"
        return None

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes on from a checkpoint of the same trial, this attempt's or an earlier one's."""
        state: Mapping[str, Any] = checkpoint.state
        self.run.restore(checkpoint.tensors, state["run"])
        self.due = state["due"]
        self._loss_since_rung = state["loss_since_rung"]
        self._tokens_since_rung = state["tokens_since_rung"]
        self._best_rung = state["best_rung"]
        self._best, self._final = state["best"], state["final"]
        self._folders = dict(state["folders"])
        if "overfitting" in state:  # not in checkpoints of version 0.1
            self._overfitting.restore(state["overfitting"])
        ours = {"attempt_id": self.order.attempt_id}
        self.reports = [Report(**{**report, **ours}) for report in state.get("reports", ())]  # likewise

    def measures_all(self, totals: Evaluation) -> bool:
        """Whether the report of the rung that is due has all of the study's metrics, as the last one has.

        Args:
            totals: What the trial came to at the rung. If that is not finite, nothing more is measured.
        """
        if not self.measures.names:
            return True
        eval_loss = totals.loss_sum / totals.tokens
        if not math.isfinite(eval_loss) or not math.isfinite(self._adapter_norm()):
            return False
        if self.run.finished or not self.measures.at_the_end:
            return True
        return self._overfitting.after(eval_loss=eval_loss, train_loss=self._train_loss()).overfits

    def report(self, totals: Evaluation, written: Sequence[str] | None = None) -> Report | None:
        """The report of the rung that is due; saves the adapter when it is the best so far.

        None where there is no rung, as in an evaluation alone.

        Args:
            totals: What the trial came to at the rung.
            written: What it wrote from each prompt of its `measures`, where it `measures_all`.

        Raises:
            ArtifactError: The adapter cannot be saved.
            TrialEndedError: A metric is not finite, or the objective's metric is missing.
            WorkerError: A metric of the study's own went wrong.
        """
        assert self.due is not None
        rung, self.due = self.due, None
        self._require_finite_adapter(rung)
        complete = self.measures_all(totals)
        started = time.perf_counter()
        metrics = self.measures.metrics(totals, self.order, written) if complete else totals.metrics()
        self.run.eval_seconds += time.perf_counter() - started
        check_metrics(metrics, self.order, rung, later=() if complete else self.measures.names)
        train_loss = self._train_loss()
        self._loss_since_rung, self._tokens_since_rung = 0.0, 0
        self._final = metrics
        self._overfitting.update(eval_loss=metrics["eval_loss"], train_loss=train_loss)
        is_best = self._improves(metrics)
        if is_best:
            self._save("best")
            self._best_rung, self._best = rung, metrics
        report = Report(
            attempt_id=self.order.attempt_id,
            rung=rung,
            examples_seen=self.run.examples_seen,
            step=self.run.steps,
            epoch=self.run.plan.epoch(self.run.steps),
            metrics=metrics,
            train_loss=train_loss,
            train_seconds=self.run.train_seconds,
            is_best=is_best,
            gradient_noise_scale=self.run.gradient_noise_scale,
        )
        self.reports.append(report)
        return report

    @property
    def finished(self) -> bool:
        """Whether the trial is trained to the end, or ends early because it overfits."""
        return self.run.finished or self._overfitting.overfits

    def complete(self, device: torch.device) -> TrialOutcome:
        """The outcome of a trial that is finished; saves its last adapter.

        Raises:
            ArtifactError: The adapter cannot be saved, or its best one is no longer where it was saved.
        """
        self._save("last")
        if not has_adapter(best_place := self._folders["best"]):
            raise ArtifactError(
                f"The best adapter has disappeared from {without_password(best_place)}, where it was saved at"
                f" {self._best_rung:,} examples."
            )
        metric, seen = self.order.objective.metric, self.run.examples_seen
        best = f"{self.value:.6g} at {self._best_rung:,} examples."
        if self.run.finished:
            reason = f"Trained to the end on {seen:,} examples; best {metric} {best}"
        else:
            reason = (
                f"Ended after {seen:,} of {self.run.plan.total_examples:,} planned examples because it"
                f" overfits: {self._overfitting.in_words()}; best {metric} {best}"
            )
        return self.outcome(OutcomeStatus.COMPLETED, reason, device)

    def outcome(self, status: OutcomeStatus, reason: str, device: torch.device) -> TrialOutcome:
        """The outcome as things stand. Only a completed trial has a value."""
        run = self.run
        return TrialOutcome(
            attempt_id=self.order.attempt_id,
            status=status,
            reason=reason,
            value=self.value if status is OutcomeStatus.COMPLETED else None,
            best_rung=self._best_rung,
            metrics=self._best,
            final_metrics=self._final,
            examples_seen=run.examples_seen,
            steps=run.steps,
            train_seconds=run.train_seconds,
            eval_seconds=run.eval_seconds,
            peak_memory_bytes=peak_bytes(device),
            trainable_parameters=run.adapter.trainable_parameters,
            gradient_noise_scale=run.gradient_noise_scale,
            predicted_memory_bytes=self.predicted_memory_bytes,
            useful_token_share=run.real_tokens / run.padded_tokens if run.padded_tokens else None,
            best_adapter_dir=self._folders.get("best"),
            last_adapter_dir=self._folders.get("last"),
        )

    def leave(self) -> None:
        """Takes the trial's adapter off the base."""
        self._host.remove(self.run.adapter.name)

    def _train_loss(self) -> float:
        """Mean since the last rung."""
        return self._loss_since_rung / self._tokens_since_rung

    def _adapter_norm(self) -> float:
        return float(torch.linalg.vector_norm(self.run.adapter.master.detach()))

    def _require_finite_adapter(self, rung: int) -> None:
        """An attention kernel may turn a query that is not a number into zeros, and the loss be finite."""
        norm = self._adapter_norm()
        if not math.isfinite(norm):
            raise TrialEndedError(
                OutcomeStatus.DIVERGED,
                f"Diverged: the norm of the adapter's weights is {norm} at {rung:,} examples.",
            )

    def _improves(self, metrics: Mapping[str, float]) -> bool:
        """Only rungs compare at which all that the definition names was measured."""
        if any(metric not in metrics for metric in named_metrics(self.order)):
            return False
        if self._best_rung is None:
            return True
        objective = self.order.objective
        value, best = metrics[objective.metric], self._best[objective.metric]
        return value < best if objective.direction == "minimize" else value > best

    def _save(self, which: str) -> None:
        name = self.run.adapter.name
        self._folders[which] = self._artifacts.save_adapter(which, lambda: self._host.files(name))
