"""What came of loading a checkpoint: whether its weights are whole, and what libraries log on the way."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import bitsandbytes as bnb
from transformers import PreTrainedModel

from search_spaces.wording import counted
from workers.base.heads import lies_in
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
            raise ModelError(
                f"The model {name} already has a head, of another size: {key} is {list(found)} in the file, "
                f"but the study's labels need {list(asked)}. Use the checkpoint that it was fine-tuned from, "
                "or data with as many labels."
            )
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
