"""The base and the data that a worker holds, loaded once and kept for the trials that share them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from search_spaces.definition import ModelSpec
from workers.adapters import AdapterHost
from workers.base_model import load_base
from workers.contract import TrialOrder
from workers.datasets import TokenizedData, load_data
from workers.memory import release


@dataclass(frozen=True)
class _Base:
    key: tuple[object, ...]
    host: AdapterHost


class LoadedStudies:
    """Holds one base at a time, and the tokenised data of the studies that train on it now.

    A base in a local folder is loaded again when a file in it has changed. Data is kept per study: all
    its trials see the same rows, and tomorrow's sweep over the same path reads it anew.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._base: _Base | None = None
        self._data: dict[tuple[str, str], tuple[TokenizedData, TokenizedData]] = {}

    @property
    def description(self) -> str | None:
        """Model id and quantization of the loaded base, if any."""
        base = self._base  # read once: another thread asks while the training thread changes it
        if base is None:
            return None
        spec = base.host.base.spec
        return f"{spec.id} {spec.quantization}"

    def load(
        self, order: TrialOrder, running: Iterable[TrialOrder]
    ) -> tuple[AdapterHost, TokenizedData, TokenizedData]:
        """The base's host, the train data and the eval data of an order.

        Args:
            order: The trial about to start.
            running: Orders of the trials that use what is loaded; all on the order's own base.

        Raises:
            ModelError: The base cannot be loaded.
            DataError: The data cannot be used.
        """
        running = list(running)
        key = _base_key(order.model)
        if self._base is None or (self._base.key != key and not running):
            # The older base goes before the new one comes: a device seldom holds two.
            self._base = None
            self._data.clear()
            release(self._device)
            self._base = _Base(key, AdapterHost(load_base(order.model, self._device)))
        host = self._base.host
        used = {_data_key(other) for other in (order, *running)}
        self._data = {key: data for key, data in self._data.items() if key in used}
        if _data_key(order) not in self._data:
            self._data[_data_key(order)] = load_data(order.data, host.base)
        return host, *self._data[_data_key(order)]


def _base_key(spec: ModelSpec) -> tuple[object, ...]:
    folder = Path(spec.id).expanduser()
    if not folder.is_dir():
        return (spec.model_dump_json(),)
    files = sorted((file.name, file.stat()) for file in folder.iterdir() if file.is_file())
    return (spec.model_dump_json(), *((name, stat.st_size, stat.st_mtime_ns) for name, stat in files))


def _data_key(order: TrialOrder) -> tuple[str, str]:
    return order.study_id, order.data.model_dump_json()
