"""What came of loading a checkpoint: whether its weights are whole, and what libraries log on the way."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
from safetensors import safe_open
from transformers import PreTrainedModel

from search_spaces.wording import counted
from workers.base.heads import lies_in
from workers.base.model_files import weight_files
from workers.errors import ModelError


def check_loaded(
    model: PreTrainedModel, loading: dict[str, Any], name: str, heads: list[str]
) -> tuple[str, ...]:
    """Refuses a model that transformers completed with random numbers, or filled with wrong shapes.

    Returns:
        Those of `heads` that the checkpoint does not have, or not whole.
    """
    absent = {lies_in(key, heads) for key in loading["missing_keys"]}
    new = tuple(head for head in heads if head in absent)
    if missing := {key for key in loading["missing_keys"] if not lies_in(key, heads)}:
        raise ModelError(
            f"The weights of the model {name} lack {counted(len(missing), 'tensor')} that its config.json "
            f"requires, such as {min(missing)}. Download or save the model again."
        )
    wrong = [(key, tuple(found), tuple(asked)) for key, found, asked in loading["mismatched_keys"]]
    for key, found, asked in wrong:
        if lies_in(key, heads):
            raise _other_head(name, key, found, asked)
    for path, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            shape = tuple(module.weight.quant_state.shape)
        elif isinstance(module, bnb.nn.Linear8bitLt):
            shape = tuple(module.weight.shape)
        else:
            continue  # transformers compares the shapes of what is not quantized, and of nothing else
        asked = (module.out_features, module.in_features)
        if shape != asked:
            wrong.append((f"{path}.weight", shape, asked))
    if wrong:
        key, found, asked = min(wrong)
        raise ModelError(
            f"The weights of the model {name} do not fit its config.json: {key} is {list(found)} in the "
            f"file, expected {list(asked)}. Download or save the model again."
        )
    return new


def check_head_sizes(folder: Path, outline: PreTrainedModel, heads: list[str], name: str) -> None:
    """Refuses a model that has a head of another size already, by what its files say of their tensors.

    Args:
        folder: Holds the weights.
        outline: The model as it is to be trained, without weights.
        heads: Paths of its heads.
        name: The model as the definition calls it, for messages.

    Raises:
        ModelError: It has one.
    """
    asked = {
        f"{path}.{own}": tuple(parameter.shape)
        for path in heads
        for own, parameter in outline.get_submodule(path).named_parameters()
    }
    for shard in weight_files(folder):
        with safe_open(shard, framework="pt") as file:
            for key in sorted(asked.keys() & set(file.keys())):
                found = tuple(file.get_slice(key).get_shape())
                if found != asked[key]:
                    raise _other_head(name, key, found, asked[key])


def _other_head(name: str, key: str, found: Sequence[int], asked: Sequence[int]) -> ModelError:
    return ModelError(
        f"The model {name} already has a head, of another size: {key} is {list(found)} in the file, "
        f"but the study's labels need {list(asked)}. Use the checkpoint that it was fine-tuned from, "
        "or data with as many labels."
    )


class _LoadReport(logging.Filter):
    """Drops transformers' table of tensors that a checkpoint has too many of, or too few.

    With a head it always names the checkpoint's own head and the one that is wanted. `check_loaded` refuses
    what is wrong.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in str(record.msg)


@contextmanager
def without_load_report() -> Iterator[None]:
    """Silences that table."""
    logger, report = logging.getLogger("transformers.modeling_utils"), _LoadReport()
    logger.addFilter(report)
    try:
        yield
    finally:
        logger.removeFilter(report)
