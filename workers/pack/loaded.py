"""The base and the data that a worker holds, loaded once and kept for the trials that share them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from search_spaces.definition import KeepDecoded, ModelSpec
from workers.base.base_model import checkpoint_activations, load_base
from workers.base.decoded_weights import keep_decoded
from workers.base.heads import Labels
from workers.contract import Preparing, TrialOrder
from workers.data.datasets import TokenizedData, load_eval, load_train
from workers.data.labels import needs_labels, read_labels
from workers.device.heartbeat import UNWATCHED, Heartbeat
from workers.device.memory import limited_memory, release, reset_peak, tokens_per_forward
from workers.errors import LengthError, ModelError, RecipeLengthError, faults_of_libraries
from workers.lora.adapters import AdapterHost
from workers.pack.learned_costs import LearnedCosts
from workers.pack.measures import Measures, read_measures
from workers.plugins import OwnLoss, load_losses
from workers.report.loading_check import check_loading
from workers.training.objectives.base import Evaluation
from workers.training.objectives.references import needs_references, shared_references
from workers.training.shared_pass import SharedPasses

_SPARE_LENGTHS = 4
"""Copies of the train data, cut to different lengths, that stay while no running trial needs them: the next
trial may, where `max_length` is a choice of a few lengths. Where it is one of many, memory stays bounded."""


@dataclass
class SharedBase:
    """A base in memory, with what was learnt of it."""

    key: tuple[object, ...]
    host: AdapterHost
    passes: SharedPasses
    costs: LearnedCosts
    keep_decoded: KeepDecoded = "never"
    """What was asked of it last: `auto` decides once."""
    most: int | None = None
    """Trials that fit together, where one more left no room to train a single row."""
    sound: set[str] = field(default_factory=set)
    """Studies that were found to be trainable on it."""
    starts: dict[tuple[object, ...], Evaluation] = field(default_factory=dict)
    """What untrained trials come to on their first examples (`workers.pack.admission`)."""
    limits_by_attempt: dict[int, int] = field(default_factory=dict)
    """Attempts that ran out of memory beside others: how many trials fit while each of them is there."""

    @property
    def limit(self) -> int | None:
        """Trials that fit together now, if more were found not to."""
        known = [] if self.most is None else [self.most]
        return min([*known, *self.limits_by_attempt.values()], default=None)


@dataclass(frozen=True)
class Loaded:
    """All that an order needs."""

    base: SharedBase
    train: TokenizedData
    evaluation: TokenizedData
    measures: Measures = field(default_factory=Measures)
    own_loss: OwnLoss | None = None
    """What the trial minimizes, where that is a loss of the study's own."""

    def made_of(self, order: TrialOrder) -> dict[str, str]:
        """The parts of `recipe_key`, so that a message can name what has changed."""
        parts = {
            "recipe": order.recipe.model_dump_json().encode(),
            "base": order.model.model_dump_json().encode(),
            "evaluation setting": order.evaluation.model_dump_json().encode(),
            "range test": repr(order.rate_sweep).encode(),
            "train data": self.train.digest,
            "eval data": self.evaluation.digest,
        }
        return {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}

    def recipe_key(self, order: TrialOrder) -> str:
        """What a checkpoint must have been made of to be gone on from: the recipe, the base and the rows."""
        digest = hashlib.sha256()
        for document in (order.recipe, order.model, order.evaluation):
            digest.update(document.model_dump_json().encode())
        if order.rate_sweep is not None:
            digest.update(repr(order.rate_sweep).encode())
        digest.update(self.train.digest + self.evaluation.digest)
        return digest.hexdigest()


class LoadedStudies:
    """Holds one base at a time, and the tokenised data of the studies that train on it now.

    A base in a local folder is loaded again when a file in it has changed. Data is kept per study: all
    its trials see the same rows, and tomorrow's sweep over the same path reads it anew. Train data is kept
    for each length that recipes cut it to; all trials of a study share one eval data.
    """

    def __init__(self, device: torch.device, heartbeat: Heartbeat = UNWATCHED) -> None:
        self._device = device
        self._heartbeat = heartbeat
        self.base: SharedBase | None = None
        """What is loaded, if anything is."""
        self._train: dict[tuple[str, str, int], TokenizedData] = {}
        self._evaluation: dict[tuple[str, str], TokenizedData] = {}
        self._measures: dict[tuple[object, ...], Measures] = {}
        self._labels: dict[tuple[str, str], Labels | None] = {}

    @property
    def description(self) -> str | None:
        """Model id and quantization of the loaded base, if any."""
        base = self.base  # read once: another thread asks while the training thread changes it
        if base is None:
            return None
        spec = base.host.base.spec
        return f"{spec.id} {spec.quantization}"

    def load(
        self,
        order: TrialOrder,
        running: Iterable[TrialOrder],
        emit: Callable[[Preparing], object] = lambda _: None,
    ) -> Loaded:
        """The base, the train data and the eval data of an order.

        Args:
            order: The trial about to start.
            running: Orders of the trials that use what is loaded; all on the order's own base.
            emit: Called when a part that takes its time begins.

        Raises:
            ModelError: The base cannot be loaded.
            DataError: The data cannot be used.
            PluginError: A metric or loss of the study's own cannot be loaded.
            RecipeLengthError: It can, but not with the recipe's own `max_length`.
        """

        def say(stage: str) -> None:
            emit(Preparing(attempt_id=order.attempt_id, stage=stage))

        running = list(running)
        if order.check_loading and not self._has(order):
            say("loading tokenizer and data in a process of their own, because a worker ended")
            check_loading(order)
        labels = self._read_labels(order, say)
        key = (order.task, labels, *_base_key(order.model))
        if self.base is None or (self.base.key != key and not running):
            say(f"loading the base {order.model.id} ({order.model.quantization})")
            # The older base goes before the new one comes: a device seldom holds two.
            self.base = None
            self._train.clear()
            self._evaluation.clear()
            self._measures.clear()
            release(self._device)
            limits = order.limits
            host = AdapterHost(
                load_base(
                    order.model,
                    self._device,
                    limits.data_roots,
                    limits.memory_gib,
                    task=order.task,
                    labels=labels,
                )
            )
            self.base = SharedBase(key, host, self._new_passes(host), _costs(order, host))
        base = self.base
        checkpoint_activations(base.host.base.model, order.gradient_checkpointing)
        if base.keep_decoded != order.keep_decoded:
            keep_decoded(base.host.base, order.keep_decoded)
            base.keep_decoded, base.costs = order.keep_decoded, _costs(order, base.host)
        elif base.costs.key != order.cost_key and not running:
            base.costs = _costs(order, base.host)
        self._forget((order, *running))
        train = self._train.pop(_train_key(order), None)
        if train is None:
            say("reading and tokenising the train data")
            with limited_memory(order.limits.memory_gib, "The train data cannot be loaded"):
                train = _load_train(order, base, self._heartbeat.beat)
        if needs_references(order.recipe, train):
            say("computing the reference's log-probabilities of the train data")
            train = self._with_references(order, base, train)
        self._train[_train_key(order)] = train  # the newest
        evaluation = self._evaluation.get(_data_key(order))
        if evaluation is None:
            say("reading and tokenising the eval data")
            with limited_memory(order.limits.memory_gib, "The eval data cannot be loaded"):
                evaluation = load_eval(
                    order.data,
                    base.host.base,
                    train.format,
                    order.study_created_at,
                    order.limits.data_roots,
                    self._heartbeat.beat,
                )
        if needs_references(order.recipe, evaluation):
            say("computing the reference's log-probabilities of the eval data")
            evaluation = self._with_references(order, base, evaluation)
        self._evaluation[_data_key(order)] = evaluation
        measures = self._measures.get(_measures_key(order))
        if measures is None:
            measures = self._measures[_measures_key(order)] = read_measures(order, evaluation, base.host.base)
        losses = load_losses(order.losses, order.limits.plugins)
        return Loaded(base, train, evaluation, measures, losses.get(order.recipe.loss or ""))

    def leave_study(self) -> None:
        """Forgets all that is one study's, and what fitted: another's rows may be longer.

        The base stays, what passes like the study's cost, and where trials start on the same rows.
        """
        self._forget(())
        if (base := self.base) is not None:
            self.base = SharedBase(
                base.key,
                base.host,
                self._new_passes(base.host),
                base.costs,
                base.keep_decoded,
                starts=base.starts,
            )

    def _new_passes(self, host: AdapterHost) -> SharedPasses:
        return SharedPasses(host, token_budget=tokens_per_forward(self._device), heartbeat=self._heartbeat)

    def _with_references(self, order: TrialOrder, base: SharedBase, data: TokenizedData) -> TokenizedData:
        """Pairs with what their losses go by; a file of the base that has changed is in the base's key."""
        place = order.limits.cache_dir
        return shared_references(base.passes, data, self._heartbeat, cache_dir=place, origin=base.key)

    def _read_labels(self, order: TrialOrder, say: Callable[[str], None]) -> Labels | None:
        """The labels of an order's study, which its base's head must be made for."""
        if not needs_labels(order.task):
            return None
        if _data_key(order) not in self._labels:
            say("reading the labels of the train data")
            with limited_memory(order.limits.memory_gib, "The train data cannot be loaded"):
                labels = read_labels(order.data, order.task, order.limits.data_roots, self._heartbeat.beat)
            self._labels[_data_key(order)] = labels
        return self._labels[_data_key(order)]

    def _has(self, order: TrialOrder) -> bool:
        """Whether nothing of an order's tokenizer and data is to be loaded."""
        is_there = _train_key(order) in self._train and _data_key(order) in self._evaluation
        key = (order.task, self._labels.get(_data_key(order)), *_base_key(order.model))
        return is_there and self.base is not None and self.base.key == key

    def _forget(self, orders: Sequence[TrialOrder]) -> None:
        """Keeps the data of these orders, and of their studies that of a few more lengths."""
        studies, needed = {_data_key(each) for each in orders}, {_train_key(each) for each in orders}
        spare = [key for key in self._train if key[:2] in studies and key not in needed][-_SPARE_LENGTHS:]
        self._train = {key: data for key, data in self._train.items() if key in needed or key in spare}
        self._evaluation = {key: data for key, data in self._evaluation.items() if key in studies}
        self._measures = {key: own for key, own in self._measures.items() if key[:2] in studies}
        self._labels = {key: labels for key, labels in self._labels.items() if key in studies}


def share_a_base(one: TrialOrder, other: TrialOrder) -> bool:
    """Whether two trials train on one base: where it has a head, that is made for one study's labels."""
    same_head = not needs_labels(one.task) or one.study_id == other.study_id
    return one.model == other.model and one.task == other.task and same_head


def _costs(order: TrialOrder, host: AdapterHost) -> LearnedCosts:
    reset_peak(host.base.device)  # what loading has freed is given back first
    return LearnedCosts(host.base, order.cost_key, order.known_costs)


def _load_train(order: TrialOrder, shared: SharedBase, on_row: Callable[[], object]) -> TokenizedData:
    """The train data, cut to the recipe's own length where it has one."""
    length, base = order.recipe.max_length, shared.host.base
    now, roots = order.study_created_at, order.limits.data_roots
    if length is None or length == order.data.max_length:
        return load_train(order.data, base, now, roots, on_row)
    try:
        cut = order.data.model_copy(update={"max_length": length})
        return load_train(cut, base, now, roots, on_row)
    except LengthError as error:
        raise RecipeLengthError.of(error) from error


def _base_key(spec: ModelSpec) -> tuple[object, ...]:
    folder = Path(spec.id).expanduser()
    if not folder.is_dir():
        return (spec.model_dump_json(),)
    with faults_of_libraries(lambda: f"The folder of the model {spec.id} cannot be read", ModelError):
        files = sorted((file.name, file.stat()) for file in folder.iterdir() if file.is_file())
    return (spec.model_dump_json(), *((name, stat.st_size, stat.st_mtime_ns) for name, stat in files))


def _data_key(order: TrialOrder) -> tuple[str, str]:
    return order.study_id, order.data.model_dump_json()


def _measures_key(order: TrialOrder) -> tuple[object, ...]:
    own = tuple(order.metrics.items()), order.objective.metric, order.constrained, order.rate_sweep is None
    return *_data_key(order), order.evaluation.model_dump_json(), *own


def _train_key(order: TrialOrder) -> tuple[str, str, int]:
    return *_data_key(order), order.recipe.max_length or order.data.max_length
