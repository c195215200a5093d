"""The base and the data that a worker holds, loaded once and kept for the trials that share them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from search_spaces.definition import ModelSpec
from workers.adapters import AdapterHost
from workers.base_model import checkpoint_activations, load_base
from workers.contract import TrialOrder
from workers.datasets import TokenizedData, load_data
from workers.memory import release, tokens_per_forward
from workers.probe import Costs
from workers.shared_pass import SharedPasses


@dataclass
class SharedBase:
    """A base in memory, with what was measured of it."""

    key: tuple[object, ...]
    host: AdapterHost
    passes: SharedPasses
    costs: Costs | None = None
    """None until a trial has been probed, or where the probe did not fit."""
    most: int | None = None
    """Trials that fit together, where one more left no room to train a single row."""
    beside: dict[int, int] = field(default_factory=dict)
    """By its attempt, a trial that was found not to fit beside more: how many fit as long as it is there."""

    @property
    def limit(self) -> int | None:
        """Trials that fit together now, if more were found not to."""
        known = [] if self.most is None else [self.most]
        return min([*known, *self.beside.values()], default=None)


@dataclass(frozen=True)
class Loaded:
    """All that an order needs."""

    base: SharedBase
    train: TokenizedData
    evaluation: TokenizedData

    def recipe_key(self, order: TrialOrder) -> str:
        """What a checkpoint must have been made of to be gone on from: the recipe, the base and the rows."""
        digest = hashlib.sha256()
        for document in (order.recipe, order.model, order.evaluation):
            digest.update(document.model_dump_json().encode())
        digest.update(self.train.digest + self.evaluation.digest)
        return digest.hexdigest()


class LoadedStudies:
    """Holds one base at a time, and the tokenised data of the studies that train on it now.

    A base in a local folder is loaded again when a file in it has changed. Data is kept per study: all
    its trials see the same rows, and tomorrow's sweep over the same path reads it anew.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.base: SharedBase | None = None
        """What is loaded, if anything is."""
        self._data: dict[tuple[str, str], tuple[TokenizedData, TokenizedData]] = {}

    @property
    def description(self) -> str | None:
        """Model id and quantization of the loaded base, if any."""
        base = self.base  # read once: another thread asks while the training thread changes it
        if base is None:
            return None
        spec = base.host.base.spec
        return f"{spec.id} {spec.quantization}"

    def load(self, order: TrialOrder, running: Iterable[TrialOrder]) -> Loaded:
        """The base, the train data and the eval data of an order.

        Args:
            order: The trial about to start.
            running: Orders of the trials that use what is loaded; all on the order's own base.

        Raises:
            ModelError: The base cannot be loaded.
            DataError: The data cannot be used.
        """
        running = list(running)
        key = _base_key(order.model)
        if self.base is None or (self.base.key != key and not running):
            # The older base goes before the new one comes: a device seldom holds two.
            self.base = None
            self._data.clear()
            release(self._device)
            host = AdapterHost(load_base(order.model, self._device))
            budget = tokens_per_forward(self._device)
            self.base = SharedBase(key, host, SharedPasses(host, token_budget=budget))
        base = self.base
        checkpoint_activations(base.host.base.model, order.gradient_checkpointing)
        used = {_data_key(other) for other in (order, *running)}
        self._data = {key: data for key, data in self._data.items() if key in used}
        if _data_key(order) not in self._data:
            self._data[_data_key(order)] = load_data(order.data, base.host.base)
        return Loaded(base, *self._data[_data_key(order)])


def _base_key(spec: ModelSpec) -> tuple[object, ...]:
    folder = Path(spec.id).expanduser()
    if not folder.is_dir():
        return (spec.model_dump_json(),)
    files = sorted((file.name, file.stat()) for file in folder.iterdir() if file.is_file())
    return (spec.model_dump_json(), *((name, stat.st_size, stat.st_mtime_ns) for name, stat in files))


def _data_key(order: TrialOrder) -> tuple[str, str]:
    return order.study_id, order.data.model_dump_json()
