"""What a row or a message asks for beside its text: to carry loss or not, and things that are not done.

A flag whose meaning is plain is honoured. One that may mean either of two things, or more than yes or no, is
refused: a row that asked to be left out must never be trained on without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workers.data.row_structures import Unread
from workers.errors import RowError, described

LOSS_FLAGS = (
    "weight",
    "loss_weight",
    "train",
    "training",
    "trainable",
    "train_on_turn",
    "loss",
    "supervised",
)
"""1 or true: it carries loss; 0 or false: it does not. OpenAI writes `weight`, Axolotl `training`."""
_UNCLEAR = {
    "mask": "may mean that it is masked or that it is not",
    "masked": "may be meant for the loss or for the text",
    "loss_mask": "may mean that it is masked or that it is not",
    "weights": "is not a known key",
    "completion_mask": "marks tokens of another tokenisation",
    "assistant_masks": "marks tokens of another tokenisation",
    "train_detail": "selects parts of a turn, which is not supported",
    "training_detail": "selects parts of a turn, which is not supported",
    "ignore": "may mean the loss or the whole turn",
    "skip": "may mean the loss or the whole turn",
}
FLAGS = frozenset((*LOSS_FLAGS, *_UNCLEAR))
_YES_OR_NO = {"1": True, "true": True, "1.0": True, "0": False, "false": False, "0.0": False}
MEANINGFUL_COLUMNS = {
    "system": "Write it as the first message, with the role system, in the format messages",
    "history": "Write the earlier turns as messages, in the format messages",
    "functions": "Call the column tools, with each function as {'type': 'function', 'function': {...}}",
    "documents": "Write them into a message",
    "chat_template_kwargs": "Write what it asks for into the tokenizer's chat template",
}
"""Columns that change what a model is given, none of which is read; with what to do instead."""


def asks_for_loss(fields: Mapping[str, Any], whose: str) -> bool | None:
    """What a row or a message says of its own loss: whether it is to carry any; None: it says nothing.

    Args:
        fields: The row, or the message.
        whose: In messages: "the row", "message 2".

    Raises:
        RowError: it says something between yes and no, two things at once, or something unclear.
    """
    found: dict[str, bool] = {}
    for name, value in fields.items():
        if name not in FLAGS or is_empty(value):
            continue
        if name in _UNCLEAR:
            if value is False and name in ("ignore", "skip"):
                continue
            raise RowError(
                f"{name!r} of {whose} ({_short(value)}) {_UNCLEAR[name]}. Remove it, and write 'train': false"
                " where there is to be no loss."
            )
        said = _YES_OR_NO.get(str(value).strip().casefold())
        if said is None:
            raise RowError(
                f"{name!r} of {whose} is {_short(value)}; expected 1 or true (it carries loss), or 0 or false"
                " (it does not). Other weights of the loss are not supported: round it or remove it."
            )
        found[name] = said
    if len(set(found.values())) > 1:
        raise RowError(f"{' and '.join(map(repr, found))} of {whose} contradict each other. Remove one.")
    return next(iter(found.values()), None)


def refuse_lost_columns(row: Mapping[str, Any], fields: tuple[str, ...]) -> None:
    """Raises RowError when a column that changes what a model is given is filled in and not read.

    Args:
        row: Under the format's names.
        fields: That the row's format reads.
    """
    for name, instead in MEANINGFUL_COLUMNS.items():
        if name not in fields and not is_empty(row.get(name)):
            raise RowError(
                f"The column {name!r} is filled in ({_short(row[name])}), but the format does not read it, so"
                f" that would be lost. {instead}, or remove the column."
            )


def is_empty(value: object) -> bool:
    """Whether a value holds nothing: null, white space, or a container of nothing else."""
    values = [value]
    while values:  # not by recursion: what nothing reads may be nested as deeply as JSON can be
        each = values.pop()
        if isinstance(each, Mapping):
            values += each.values()
        elif isinstance(each, (list, tuple)):
            values += each
        elif each is not None and not (isinstance(each, str) and not each.strip()):
            return False
    return True


def _short(value: object) -> str:
    if isinstance(value, Unread):
        return value.text if value.text and len(value.text) < 20 else f"a value that {value.reason}"
    return described(value)
