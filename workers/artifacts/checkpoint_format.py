"""What a checkpoint's two files hold: tensors as safetensors, the rest as JSON. Nothing is ever unpickled.

`state.json` carries the size and the SHA-256 of `tensors.safetensors`, the dtypes and shapes of the tensors,
the state, and a SHA-256 of itself: a single byte that changed on its way is found.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from workers.errors import WorkerError

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

FORMAT = 1
"""Of `state.json`. To be raised when an older worker would misread what is written."""

TENSORS, STATE = "tensors.safetensors", "state.json"

_FLOATS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
_WHOLE = frozenset({torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool})
_DTYPES = _FLOATS | _WHOLE
"""What a checkpoint may hold. safetensors writes a few dtypes more, some of which it cannot read back."""


class CheckpointError(WorkerError):
    """A checkpoint is missing, corrupt or of another format, or its contents cannot be written exactly."""


class NoCheckpointError(CheckpointError):
    """Nothing is there: none was ever written, or it was removed."""


@dataclass(frozen=True)
class Checkpoint:
    """What `write_checkpoint` was given, bit by bit."""

    tensors: Mapping[str, torch.Tensor]
    """On the CPU, each with memory of its own."""
    state: Mapping[str, JSON]
    """Plain values, with the recipe's key under `recipe_key`."""


def encode(tensors: Mapping[str, torch.Tensor], state: Mapping[str, object]) -> tuple[bytes, bytes]:
    """The contents of `tensors.safetensors` and of `state.json`.

    Args:
        tensors: On any device, of any layout; views of shared memory are written one by one.
        state: JSON values only, so that the same comes back: no tuples, no numbers that are not finite, and
            no keys but text. `recipe_key` is required: `newest_usable` tells by it whose checkpoint it is.

    Raises:
        CheckpointError: `tensors` or `state` holds something that would not come back as it is.
    """
    data, entries = _serialized(tensors)
    return data, _document(data, entries, state)


def decode(document: bytes, read_tensors: Callable[[int], bytes]) -> Checkpoint:
    """A checkpoint from its two files.

    Args:
        document: The contents of `state.json`.
        read_tensors: Called with the number of bytes that `tensors.safetensors` must have; returns them, or
            at least one byte more if there are more.

    Raises:
        CheckpointError: They are not what was written.
    """
    stated = _read_document(document)
    try:
        written = stated["tensors"]
        data = read_tensors(written["bytes"])
        if len(data) != written["bytes"]:
            found = "more bytes" if len(data) > written["bytes"] else f"{len(data):,} bytes"
            raise CheckpointError(f"{TENSORS} has {found}; {written['bytes']:,} were written")
        if hashlib.sha256(data).hexdigest() != written["sha256"]:
            raise CheckpointError(f"{TENSORS} was changed or damaged: its SHA-256 differs")
        tensors = load(data)
        if _entries(tensors) != written["entries"]:
            raise CheckpointError(f"{TENSORS} holds other names, dtypes or shapes than {STATE} says")
        return Checkpoint(tensors, dict(stated["state"]))
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise CheckpointError(f"{TENSORS} is not what {STATE} says ({first_line(error)})") from error


def first_line(error: BaseException) -> str:
    """What an error says, without the rest of a long message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _serialized(tensors: Mapping[str, torch.Tensor]) -> tuple[bytes, dict[str, Any]]:
    """The safetensors file, and the dtype and shape of each tensor."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(f"The tensor {name!r} is {tensor.dtype}, which a checkpoint cannot hold.")
    # Cloned, because views of one buffer keep all of it alive and safetensors takes contiguous ones only.
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    if "__metadata__" in copies:
        raise CheckpointError("No tensor can be called '__metadata__': safetensors uses that name itself.")
    try:
        return save(copies), _entries(copies)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"The tensors cannot be written ({first_line(error)}).") from error


def _entries(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {
        name: {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
        for name, tensor in tensors.items()
    }


def _document(data: bytes, entries: dict[str, Any], state: Mapping[str, object]) -> bytes:
    """The contents of `state.json`."""
    if not isinstance(state.get("recipe_key"), str):
        raise CheckpointError("The state has no text under 'recipe_key' to say whose checkpoint it is.")
    document = {
        "format": FORMAT,
        "tensors": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "entries": entries},
        "state": dict(state),
    }
    try:
        _refuse_inexact(document["state"], "state")
        document["sha256"] = _digest(document)
        return json.dumps(document, indent=1, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"The state cannot be written as JSON ({first_line(error)}).") from error


def _refuse_inexact(value: object, where: str) -> None:
    """Refuses what JSON would change on the way there and back, such as a tuple, or has no word for."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise CheckpointError(f"{where} has the key {key!r}; JSON's keys are text.")
            _refuse_inexact(item, f"{where}[{key!r}]")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_inexact(item, f"{where}[{index}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise CheckpointError(f"{where} is {value}, a number that JSON does not have.")
    elif value is not None and not isinstance(value, bool | int | str):
        raise CheckpointError(f"{where} is a {type(value).__name__}, which would not come back from JSON.")


def _digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of everything in `state.json` but this digest, however it is laid out in the file."""
    rest = {key: value for key, value in document.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _read_document(content: bytes) -> dict[str, Any]:
    """What `state.json` says, which is what was written."""
    try:
        document = json.loads(content)
        if not isinstance(document, dict) or "format" not in document:
            raise CheckpointError(f"{STATE} is not a checkpoint's")
        if document["format"] != FORMAT:
            raise CheckpointError(f"{STATE} has format {document['format']!r}; this worker reads {FORMAT}")
        if document.get("sha256") != _digest(document):
            raise CheckpointError(f"{STATE} was changed or damaged: its SHA-256 differs")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{STATE} is not valid JSON ({first_line(error)})") from error
    return document
