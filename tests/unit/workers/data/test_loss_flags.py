"""Fields that ask for something: honoured where their meaning is plain, else refused; in every format."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tests.support.workers.models import EOS, build_tiny_tokenizer
from workers.data.formats import FORMATS
from workers.data.loss_flags import is_empty
from workers.errors import RowError

ASK = {"role": "user", "content": "turn on the light"}
ROWS: dict[str, dict[str, Any]] = {
    "text": {"text": "the lamp"},
    "prompt_completion": {"prompt": "the ", "completion": "lamp"},
    "messages": {"messages": [ASK, {"role": "assistant", "content": "done"}]},
    "alpaca": {"instruction": "say it", "output": "lamp"},
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tiny_tokenizer()


def supervised(name: str, row: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> str:
    encoded = FORMATS[name].encode(row, tokenizer)
    return str(tokenizer.decode([label for label in encoded.labels if label != -100]))


def turns(**keys: Any) -> dict[str, Any]:
    """Two turns, the first with a flag."""
    return {
        "messages": [
            ASK,
            {"role": "assistant", "content": "done", **keys},
            ASK,
            {"role": "assistant", "content": "four"},
        ]
    }


@pytest.mark.parametrize(
    "flag",
    [
        {"weight": 0},
        {"weight": 0.0},
        {"weight": "0"},
        {"train": False},
        {"train": "false"},
        {"training": False},
        {"trainable": 0},
        {"train_on_turn": False},
        {"loss": False},
        {"loss_weight": 0},
        {"supervised": False},
        {"weight": 0, "train": False},
    ],
)
def test_a_turn_that_asks_for_no_loss_carries_none(
    flag: dict[str, Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    """OpenAI's `weight`, Axolotl's `train` and their like; the turn stays in the text."""
    encoded = FORMATS["messages"].encode(turns(**flag), tokenizer)
    assert encoded.input_ids == FORMATS["messages"].encode(turns(), tokenizer).input_ids
    assert supervised("messages", turns(**flag), tokenizer) == f"four{EOS}"


@pytest.mark.parametrize(
    "flag", [{"weight": 1}, {"train": True}, {"weight": None}, {"train": ""}, {"skip": False}]
)
def test_a_turn_that_asks_for_loss_carries_it(
    flag: dict[str, Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    assert supervised("messages", turns(**flag), tokenizer) == f"done{EOS}four{EOS}"


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ({"weight": 0.5}, "'weight' of message 2 is 0.5; expected 1 or true"),
        ({"weight": 2}, "'weight' of message 2 is 2; expected 1 or true"),
        ({"train": "maybe"}, "'train' of message 2 is 'maybe'"),
        ({"weight": [0, 1]}, r"'weight' of message 2 is of type list"),
        ({"mask": True}, "'mask' of message 2 .* may mean that it is masked or that it is not"),
        ({"mask": 0}, "'mask' of message 2"),
        ({"loss_mask": [0, 1]}, "'loss_mask' of message 2"),
        (
            {"train_detail": [{"begin_offset": 0, "end_offset": 3, "train": False}]},
            "selects parts of a turn",
        ),
        ({"ignore": True}, "'ignore' of message 2"),
        ({"weight": 0, "train": True}, "'weight' and 'train' of message 2 contradict each other"),
    ],
)
def test_a_flag_that_is_not_plain_is_refused(
    flag: dict[str, Any], expected: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(RowError, match=expected):
        supervised("messages", turns(**flag), tokenizer)


@pytest.mark.parametrize(
    ("flag", "fine"), [({"weight": 0}, True), ({"train": True}, False), ({"weight": 1}, False)]
)
def test_only_the_assistants_turns_can_carry_loss(
    flag: dict[str, Any], fine: bool, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A user's turn that asks for it is refused; one that asks for none has what it asks for."""
    row = {"messages": [{**ASK, **flag}, {"role": "assistant", "content": "done"}]}
    if fine:
        assert supervised("messages", row, tokenizer) == f"done{EOS}"
    else:
        with pytest.raises(RowError, match=r"Message 1 \(user\) asks to carry loss"):
            supervised("messages", row, tokenizer)


def test_a_turn_of_the_prompt_cannot_carry_loss(tokenizer: PreTrainedTokenizerFast) -> None:
    """Only the completion's turns do."""
    said = {"role": "assistant", "content": "done"}
    row = {"prompt": [ASK, {**said, "weight": 0}, ASK], "completion": [{**said, "weight": 1}]}
    assert supervised("prompt_completion", row, tokenizer) == f"done{EOS}"
    row["prompt"][1]["weight"] = 1
    with pytest.raises(RowError, match="only the completion's turns can"):
        supervised("prompt_completion", row, tokenizer)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_that_asks_for_no_loss_carries_none(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """It is left out and counted, like any row without a supervised token."""
    assert supervised(name, {**ROWS[name], "weight": 0}, tokenizer) == ""
    assert supervised(name, {**ROWS[name], "train": "true", "weight": None}, tokenizer) != ""


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("flag", [{"weight": 0.3}, {"mask": [0, 1]}, {"completion_mask": [0, 1]}])
def test_a_rows_flag_that_is_not_plain_is_refused(
    name: str, flag: dict[str, Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(RowError, match=f"'{next(iter(flag))}' of the row"):
        supervised(name, {**ROWS[name], **flag}, tokenizer)


@pytest.mark.parametrize("name", ["prompt_completion", "messages", "alpaca"])
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("system", "be brief"),
        ("history", [["turn it on", "done"]]),
        ("functions", [{"name": "switch"}]),
        ("documents", [{"title": "t", "text": "x"}]),
        ("chat_template_kwargs", {"enable_thinking": False}),
    ],
)
def test_columns_that_change_what_a_model_is_given_are_refused(
    name: str, column: str, value: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Alpaca's `system` and `history`, and others that are read by nothing, unless they are empty."""
    with pytest.raises(RowError, match=f"The column '{column}' is filled in .* would be lost"):
        supervised(name, {**ROWS[name], column: value}, tokenizer)
    for empty in (None, "", " ", [], [[]], {"a": None}):
        assert supervised(name, {**ROWS[name], column: empty}, tokenizer) != ""


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, True), ("\n", True), ({"a": [None, ""]}, True), (0, False), (False, False), ([0], False)],
)
def test_what_holds_nothing_is_empty(value: Any, expected: bool) -> None:
    assert is_empty(value) == expected
