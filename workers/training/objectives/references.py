"""What the base without an adapter gives the answers of preference pairs: DPO's reference.

Every trial of a study has the same one, so it is computed once for each data set, and kept on the node's disk
for the workers and studies that come after.

A file is named after all that its numbers depend on: the base and its files, how it computes, and the pairs.
It holds a SHA-256 of its name and its numbers, then the numbers, float32 [N, 2], little-endian. Whatever is
not just that is computed again.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import torch
import transformers

from search_spaces.recipe import Recipe
from workers.base.base_model import LoadedBase, set_training
from workers.data.batches import collate
from workers.data.datasets import TokenizedData
from workers.data.examples import PairExample
from workers.device.heartbeat import Heartbeat
from workers.lora.adapters import AdapterHost
from workers.lora.multi_lora import RowGroup
from workers.training.evaluation import length_batches
from workers.training.objectives.base import of_kind
from workers.training.objectives.pairs import answer_log_probabilities, rows_of
from workers.training.shared_pass import SharedPasses

_log = logging.getLogger(__name__)

FOLDER = "references"
"""In the node's cache folder."""

MOST_BYTES = 2**28
"""Of all files; a pair takes 8. Those that were read or written longest ago are removed beyond it."""

_ENDING, _DRAFT = ".references", ".part"
_CHECKSUM_BYTES = 32

References = Sequence[tuple[float, float]]
"""Log-probabilities of the chosen and the rejected answer of each pair."""


def needs_references(recipe: Recipe, data: TokenizedData) -> bool:
    """Whether a trial's loss goes by a reference that the data does not have yet."""
    if data.format != "preference" or recipe.loss not in (None, "dpo"):
        return False  # ranked pairs have none, either
    first = data.examples[0]
    return isinstance(first, PairExample) and first.reference is None


def shared_references(
    passes: SharedPasses,
    data: TokenizedData,
    heartbeat: Heartbeat,
    *,
    cache_dir: str | None = None,
    origin: object = None,
) -> TokenizedData:
    """The same pairs with the log-probabilities of both answers: from the disk, or else computed and kept.

    Args:
        passes: Of the base, whatever adapters are on it. Running out of memory makes its passes smaller.
        data: Of pairs.
        heartbeat: Notified of each pass.
        cache_dir: The node's cache folder; None: nothing is kept.
        origin: What tells the base's weights from others; equal texts (`repr`) are equal weights.

    Raises:
        DoesNotFitError: One pair does not fit.
    """
    key = cache_key(passes.host.base, data, origin)
    folder = None if cache_dir is None else Path(cache_dir) / FOLDER
    found = None if folder is None else _read(folder / f"{key}{_ENDING}", key, len(data.examples))
    if found is None:
        longest = max(example.length for example in data.examples)
        found = passes.within_memory(
            lambda budget: references(passes.host, budget, data, heartbeat),
            longest,
            f"computing the reference of one pair of {longest} tokens",
        )
        if folder is not None:
            _write(folder / f"{key}{_ENDING}", key, found)
    return _given(data, found)


def with_references(
    host: AdapterHost, token_budget: int, data: TokenizedData, heartbeat: Heartbeat
) -> TokenizedData:
    """The same pairs with the log-probabilities of both answers, computed.

    Args and errors as of `references`.
    """
    return _given(data, references(host, token_budget, data, heartbeat))


@torch.no_grad()
def references(host: AdapterHost, token_budget: int, data: TokenizedData, heartbeat: Heartbeat) -> References:
    """What the base without an adapter gives both answers of each pair, in the data's order.

    Args:
        host: The base, whatever adapters are on it.
        token_budget: Padded tokens per forward pass.
        data: Of pairs.
        heartbeat: Notified of each pass.

    Raises:
        torch.OutOfMemoryError: A pass did not fit.
    """
    base = host.base
    set_training(base.model, False)
    budget = token_budget if base.rows_independent else 1  # then each pair alone, whatever fits
    found: dict[int, tuple[float, float]] = {}
    for indices in length_batches([example.length for example in data.examples], budget):
        batch = collate(rows_of([data.examples[index] for index in indices]), base.pad_id).to(base.device)
        nobody = [RowGroup({}, batch.rows)]
        with (
            heartbeat.passing("evaluation"),
            host.multi_lora.running(nobody, tokens=batch.tokens, form="looped", device=base.device),
        ):
            sums = answer_log_probabilities(base, batch).view(-1, 2).tolist()
        found |= {index: (chosen, rejected) for index, (chosen, rejected) in zip(indices, sums, strict=True)}
    return [found[index] for index in range(len(data.examples))]


def cache_key(base: LoadedBase, data: TokenizedData, origin: object) -> str:
    """SHA-256 of all that references depend on, in hexadecimal digits.

    Args:
        base: Its name is the folder that its weights came from; on the hub that names the commit.
        data: Its examples count, in their order.
        origin: As in `shared_references`.
    """
    parts = (
        torch.__version__,
        transformers.__version__,
        base.spec.model_dump_json(),
        base.model.name_or_path,
        origin,
        base.compute_dtype,
        base.device.type,
        len(data.examples),
        data.digest,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _given(data: TokenizedData, found: References) -> TokenizedData:
    pairs = of_kind(data.examples, PairExample)
    examples = (replace(pair, reference=own) for pair, own in zip(pairs, found, strict=True))
    return replace(data, examples=tuple(examples))


def _checksum(key: str, numbers: bytes) -> bytes:
    return hashlib.sha256(key.encode() + numbers).digest()


def _read(file: Path, key: str, pairs: int) -> References | None:
    """The file's contents; None: there is none that can be used, which is nobody's fault."""
    try:
        if not file.is_file():
            return None
        whole = file.stat().st_size == _CHECKSUM_BYTES + 8 * pairs
        content = file.read_bytes() if whole else b""
        checksum, numbers = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
        if len(numbers) != 8 * pairs or checksum != _checksum(key, numbers):
            _log.warning("%s is not what was written there, so the reference is computed again", file)
            return None
        os.utime(file)  # used now, so removed late
    except OSError as error:
        _log.warning("the reference in %s cannot be read, so it is computed again: %s", file, error)
        return None
    values = np.frombuffer(numbers, dtype="<f4").tolist()
    return list(zip(values[::2], values[1::2], strict=True))


def _write(file: Path, key: str, found: References) -> None:
    """Writes a file whole or not at all. A full or forbidden disk is no reason to fail."""
    values = np.array(found, dtype="<f4")
    if not np.isfinite(values).all():
        return
    numbers = values.tobytes()
    draft: Path | None = None
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=file.parent, suffix=_DRAFT, delete=False) as handle:
            draft = Path(handle.name)
            handle.write(_checksum(key, numbers) + numbers)
        draft.replace(file)
        _remove_oldest(file.parent)
    except OSError as error:
        _log.warning("the reference is not kept in %s: %s", file, error)
        if draft is not None:
            with suppress(OSError):
                draft.unlink(missing_ok=True)


def _remove_oldest(folder: Path) -> None:
    """Keeps the folder within `MOST_BYTES`. Other workers may remove the same files."""
    known: list[tuple[float, int, Path]] = []
    for file in folder.iterdir():
        if file.suffix in (_ENDING, _DRAFT):
            with suppress(FileNotFoundError):
                stat = file.stat()
                known.append((stat.st_mtime, stat.st_size, file))
    total = 0
    for _, size, file in sorted(known, reverse=True):
        total += size
        if total > MOST_BYTES:
            file.unlink(missing_ok=True)
