"""One attempt at an evaluation: the adapter of an earlier trial is put on the base, and evaluated once.

It takes part in the evaluations of a pack as a trial that has reached its only rung, so the numbers are those
that the trial itself would report there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from search_spaces.values.artifact_layout import ADAPTER_WEIGHTS, MODEL_CONFIG
from search_spaces.values.artifact_urls import without_password
from search_spaces.wording import counted
from workers.artifacts.folders import folder_at
from workers.contract import OutcomeStatus, TrialOrder, TrialOutcome, TrialStarted
from workers.errors import ArtifactError, UnusableAdapterError
from workers.evaluated import Evaluated
from workers.lora.adapters import AdapterHost
from workers.pack.attempt import Attempt
from workers.pack.evaluations.row_sums import grouped, loss_sums, objective_sums
from workers.pack.loaded import Loaded
from workers.pack.measures import check_metrics
from workers.training.objectives.base import Evaluation
from workers.training.objectives.language import Totals
from workers.training.trial_run import TrialRun

_LIBRARIES = ("nightsweep", "torch", "transformers", "peft", "bitsandbytes")

_NO_START = Totals(loss_sum=1.0, correct=0, tokens=1)
"""It does not train, so nothing is compared with where it started."""


class EvaluationAttempt(Attempt):
    """An attempt at an evaluation: no training, no rung, no adapter of its own."""

    per_row = True
    _data: str = ""
    _evaluated: Evaluated | None = None

    @property
    def finished(self) -> bool:
        """It ends with its evaluation."""
        return True

    def begin(self, data: bytes) -> None:
        """Has it evaluated next. `data`: the digest of the eval rows."""
        self._data = data.hex()
        self.due = 0

    def started(self, loaded: Loaded, device: torch.device) -> TrialStarted:
        """There is nothing to train."""
        return replace(super().started(loaded, device), total_examples=0, total_steps=0)

    def checkpoint_if_possible(self) -> None:
        """Nothing would be lost without one: another attempt evaluates anew."""

    def measures_all(self, totals: Evaluation) -> bool:
        """There is no later rung."""
        return True

    def report(self, totals: Evaluation, written: Sequence[str] | None = None) -> None:
        """Takes in what the adapter came to.

        Raises:
            TrialEndedError: A metric is not finite, or the objective's metric is missing.
            WorkerError: A metric of the study's own went wrong.
        """
        self.due = None
        metrics = self.measures.metrics(totals, self.order, written)
        check_metrics(metrics, self.order, 0, later=())
        self._best = self._final = metrics
        loss = loss_sums(totals)
        found = objective_sums(totals, self.order.objective.metric, self.measures, written)
        statistic, sums = (None, None) if found is None else found
        self._evaluated = Evaluated(
            data=self._data,
            rows=len(loss if sums is None else sums),
            statistic=statistic,
            objective=() if sums is None else grouped(sums),
            loss=grouped(loss),
            versions=_versions(),
        )

    def complete(self, device: torch.device) -> TrialOutcome:
        """The outcome, once it has been evaluated."""
        metric = self.order.objective.metric
        reason = f"Evaluated on {counted(len(self.eval_examples), 'row')}: {metric} {self.value:.6g}."
        return self.outcome(OutcomeStatus.COMPLETED, reason, device)

    def outcome(self, status: OutcomeStatus, reason: str, device: torch.device) -> TrialOutcome:
        """The outcome as things stand, with what each row came to."""
        return replace(super().outcome(status, reason, device), evaluated=self._evaluated)


def prepare_evaluation(order: TrialOrder, loaded: Loaded) -> EvaluationAttempt:
    """The attempt before its evaluation, with the adapter on the base.

    Raises:
        UnusableAdapterError: The adapter is gone, or does not fit this base and task.
        ArtifactError: What is behind its URL, or the disk, does not answer.
        AdapterError: The recipe's adapter cannot be put on this base.
    """
    assert order.evaluates is not None
    host = loaded.base.host
    adapter = host.add(f"attempt-{order.attempt_id}", order.recipe)
    try:
        _put_in(host, adapter.name, order.evaluates)
        run = TrialRun(order.recipe, adapter, loaded.train.examples, start=_NO_START, divergence_factor=2.0)
        attempt = EvaluationAttempt(
            order,
            run,
            host,
            loaded.evaluation.examples,
            recipe_key=loaded.recipe_key(order),
            measures=loaded.measures,
        )
    except BaseException:
        host.remove(adapter.name)
        raise
    attempt.begin(loaded.evaluation.digest)
    return attempt


def _put_in(host: AdapterHost, name: str, place: str) -> None:
    """Gives an adapter the numbers that were saved in a folder."""
    if not place:
        raise UnusableAdapterError("The trial left no adapter that could be evaluated.")
    shown = without_password(place)
    own = host.weights(name)
    try:
        found = load(_read(place, ADAPTER_WEIGHTS))
    except SafetensorError as error:
        raise UnusableAdapterError(f"The adapter in {shown} is damaged: {error}.") from error
    shapes = [{key: tuple(tensor.shape) for key, tensor in each.items()} for each in (own, found)]
    if shapes[0] != shapes[1]:
        differ = sorted(key for key in {*own, *found} if shapes[0].get(key) != shapes[1].get(key))
        raise UnusableAdapterError(
            f"The adapter in {shown} does not fit this base and task:"
            f" {counted(len(differ), 'tensor')} differ in name or shape, such as {differ[0][:200]}."
        )
    if host.trains_heads:
        _check_labels(host, json.loads(_read(place, MODEL_CONFIG)), shown)
    for key, tensor in own.items():
        tensor.copy_(found[key])


def _check_labels(host: AdapterHost, saved: Mapping[str, Mapping[str, str]], shown: str) -> None:
    now = {str(number): name for number, name in (host.base.model.config.id2label or {}).items()}
    then = {str(number): name for number, name in saved.get("id2label", now).items()}
    if now != then:
        raise UnusableAdapterError(
            f"The head of the adapter in {shown} answers {counted(len(then), 'label')}, which are not those"
            f" of the train data now ({counted(len(now), 'label')})."
        )


def _read(place: str, name: str) -> bytes:
    shown = without_password(place)
    try:
        return folder_at(place).get(name)
    except FileNotFoundError:
        raise UnusableAdapterError(f"The adapter is gone from {shown}: there is no {name}.") from None
    except OSError as error:
        raise ArtifactError(f"The adapter in {shown} cannot be read: {error.strerror or error}.") from error


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # a checkout that was never installed
            continue
    return found
