"""Messages, tools and calls mean the same whatever file they come from and however they are written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy
import pyarrow
import pyarrow.parquet
import pytest

from tests.support.workers.rows import (
    TOOLS,
    TOOLS_AS_TEXT,
    read,
    write_csv,
    write_json,
    write_jsonl,
    write_parquet,
)
from workers.data.row_structures import read_structures
from workers.errors import RowError

ASK = {"role": "user", "content": "turn on the lamp"}
DONE = {"role": "assistant", "content": "done"}
ARGUMENTS = {"device": "lämp", "level": {"value": 20}, "rooms": ["a", "b"]}
LAMP: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "switch",
        "description": "Switch a thing",
        "parameters": {"type": "object", "properties": {"device": {"type": "string"}, "on": {"enum": ["a"]}}},
    },
}
TIME: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "time",
        "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}},
    },
}


def call(arguments: Any, name: str = "switch", **more: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": function}], **more}


ROWS: list[dict[str, Any]] = [
    {"messages": [ASK, call(ARGUMENTS), {"role": "tool", "content": "ok"}, DONE], "tools": [LAMP, TIME]},
    {"messages": [ASK, call({"zone": "UTC"}, "time")], "tools": [TIME]},
    {"messages": [ASK, DONE]},
]
"""With members that other rows lack, at every depth."""
SAID = [
    '[switch {"device": "lämp", "level": {"value": 20}, "rooms": ["a", "b"]}]<|im_end|>done<|im_end|>',
    '[time {"zone": "UTC"}]<|im_end|>',
    "done<|im_end|>",
]


def write_hub_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    """As `datasets` writes rows whose types differ: as JSON within Arrow."""
    write_jsonl(path.with_suffix(".jsonl"), rows)
    features = datasets.Features(
        {"messages": datasets.List(datasets.Json()), "tools": datasets.List(datasets.Json())}
    )
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)
    return path


@pytest.mark.parametrize("template", [TOOLS, TOOLS_AS_TEXT], ids=["objects", "text"])
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("d.jsonl", write_jsonl),
        ("d.json", write_json),
        ("d.csv", write_csv),
        ("d.parquet", write_parquet),
        ("hub.parquet", write_hub_parquet),
    ],
)
def test_every_kind_of_file_gives_the_same_tokens(
    name: str, write: Callable[[Path, list[dict[str, Any]]], Path], template: str, tmp_path: Path
) -> None:
    """Arrow's nulls, JSON in cells and JSON within Arrow leave no trace, and tools are whole."""
    texts, said = read(write(tmp_path / name, ROWS), template)
    assert said == SAID
    assert texts[0].startswith(json.dumps([LAMP, TIME]))
    assert texts[1].startswith(json.dumps([TIME]) + "<|im_start|>user")
    assert texts[2].startswith("<|im_start|>user")


@pytest.mark.parametrize("template", [TOOLS, TOOLS_AS_TEXT], ids=["objects", "text"])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASK, call(json.dumps(ARGUMENTS))], "tools": json.dumps([LAMP])},
        {
            "messages": [ASK, call(json.dumps(ARGUMENTS, indent=1, ensure_ascii=False))],
            "tools": [json.dumps(LAMP)],
        },
        {
            "messages": [
                ASK,
                {**DONE, "content": "", "tool_calls": json.dumps(call(ARGUMENTS)["tool_calls"])},
            ],
            "tools": [LAMP],
        },
        {"messages": json.dumps([ASK, call(ARGUMENTS)]), "tools": [LAMP]},
        {"messages": [ASK, call(ARGUMENTS, content=None, name="switch", reasoning=None)], "tools": [LAMP]},
        {
            "messages": [ASK, call({**ARGUMENTS, "unit": None, "level": {"value": 20, "x": None}})],
            "tools": [{**LAMP, "strict": None, "function": {**LAMP["function"], "strict": None}}],
        },
        {
            "messages": [ASK, call(ARGUMENTS)],
            "tools": [
                {
                    "type": "function",
                    "function": {
                        **LAMP["function"],
                        "parameters": json.dumps(LAMP["function"]["parameters"]),
                    },
                }
            ],
        },
        {"messages": [ASK, call({**ARGUMENTS, "rooms": ("a", "b")})], "tools": (LAMP,)},
        {
            "messages": {
                key: [ASK.get(key), call(ARGUMENTS).get(key)] for key in ("role", "content", "tool_calls")
            },
            "tools": [LAMP],
        },
    ],
    ids=[
        "arguments and tools as text",
        "arguments in other spelling, each tool as text",
        "calls as text",
        "messages as text",
        "nulls in messages",
        "nulls at every depth",
        "parameters as text",
        "tuples",
        "an object of lists",
    ],
)
def test_every_way_to_write_a_call_gives_the_same_tokens(
    row: dict[str, Any], template: str, tmp_path: Path
) -> None:
    """OpenAI's text and transformers' objects, for templates that want one or the other."""
    expected = read(
        write_jsonl(tmp_path / "e.jsonl", [{"messages": [ASK, call(ARGUMENTS)], "tools": [LAMP]}]), template
    )
    assert read(write_jsonl(tmp_path / "d.jsonl", [row]), template) == expected


def test_a_null_that_is_written_in_the_text_of_arguments_stays(tmp_path: Path) -> None:
    """Text is not padded, so its null is meant."""
    path = write_jsonl(tmp_path / "d.jsonl", [{"messages": [ASK, call('{"unit": null}')]}])
    assert read(path)[1] == ['[switch {"unit": null}]<|im_end|>']


def test_maps_and_arrays_are_objects_and_lists() -> None:
    """Arrow's maps come as pairs, hub data sets may hold numpy's values."""
    arguments = {"map": [("a", 1), ("b", 2)], "array": numpy.array([1, 2]), "number": numpy.int64(3)}
    row = read_structures({"messages": [call(arguments)]}, ("messages", "tools"))
    found = row["messages"][0]["tool_calls"][0]["function"]["arguments"]
    assert found == {"map": {"a": 1, "b": 2}, "array": [1, 2], "number": 3}


def test_a_parquet_map_is_an_object(tmp_path: Path) -> None:
    """The columns of arguments that all hold texts are often maps."""
    function = pyarrow.struct(
        [("name", pyarrow.string()), ("arguments", pyarrow.map_(pyarrow.string(), pyarrow.string()))]
    )
    message = pyarrow.struct(
        [
            ("role", pyarrow.string()),
            ("content", pyarrow.string()),
            ("tool_calls", pyarrow.list_(pyarrow.struct([("function", function)]))),
        ]
    )
    calls = [{"function": {"name": "switch", "arguments": [("device", "lamp")]}}]
    rows = [[ASK, {"role": "assistant", "tool_calls": calls}]]
    table = pyarrow.table({"messages": pyarrow.array(rows, pyarrow.list_(message))})
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    assert read(tmp_path / "d.parquet")[1] == ['[switch {"device": "lamp"}]<|im_end|>']


FLAT = TOOLS.replace("call.function", "(call.function or call)")
LISTED = TOOLS.replace(
    "{{ call.function.arguments | tojson }}",
    "{% for key, value in call.function.arguments.items() %}{{ key }}={{ value }};{% endfor %}",
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (TOOLS, '[switch {"device": "lamp"}]'),
        (TOOLS_AS_TEXT, '[switch {"device": "lamp"}]'),
        (
            TOOLS.replace("{{ call.function.arguments | tojson }}", "{{ '' + call.function.arguments }}"),
            '[switch {"device": "lamp"}]',
        ),
        (
            TOOLS.replace(
                "{{ call.function.arguments | tojson }}",
                "{% if call.function.arguments is string %}{{ call.function.arguments }}{% else %}"
                "{{ call.function.arguments | tojson }}{% endif %}",
            ),
            '[switch {"device": "lamp"}]',
        ),
        (LISTED, "[switch device=lamp;]"),
        (
            TOOLS.replace(
                "{{ '[' + call.function.name + ' ' }}{{ call.function.arguments | tojson }}{{ ']' }}",
                "{{ call | tojson }}",
            ),
            '{"type": "function", "function": {"name": "switch", "arguments": {"device": "lamp"}}}',
        ),
        (FLAT, '[switch {"device": "lamp"}]'),
    ],
    ids=["object", "printed", "joined", "either", "one by one", "whole call", "flat"],
)
@pytest.mark.parametrize(
    "arguments", [{"device": "lamp"}, '{"device": "lamp"}'], ids=["from object", "from text"]
)
def test_templates_get_arguments_in_the_form_they_write_as_json(
    template: str, expected: str, arguments: Any, tmp_path: Path
) -> None:
    """Never Python's notation, and never a text within a text."""
    path = write_jsonl(tmp_path / "d.jsonl", [{"messages": [ASK, call(arguments)]}])
    assert read(path, template)[1] == [f"{expected}<|im_end|>"]


def test_a_call_without_function_has_its_arguments_read_too(tmp_path: Path) -> None:
    """Some data sets keep name and arguments in the call itself."""
    flat = {"role": "assistant", "tool_calls": [{"name": "switch", "arguments": '{"device": "lamp"}'}]}
    path = write_jsonl(tmp_path / "d.jsonl", [{"messages": [ASK, flat]}])
    assert read(path, FLAT)[1] == ['[switch {"device": "lamp"}]<|im_end|>']


@pytest.mark.parametrize(
    ("template", "arguments", "expected"),
    [
        (
            TOOLS.replace("{{ call.function.arguments | tojson }}", "{{ call }}"),
            {"a": "b"},
            "writes the arguments of tool calls in Python's notation",
        ),
        (LISTED, {"rooms": ["a"]}, "writes lists or objects among a tool call's arguments in Python's"),
        (LISTED, {"level": {"of": "x"}}, "writes lists or objects among a tool call's arguments in Python's"),
    ],
    ids=["a whole call", "a list", "an object"],
)
def test_arguments_in_pythons_notation_are_refused(
    template: str, arguments: Any, expected: str, tmp_path: Path
) -> None:
    """Where neither form gives JSON, nothing is trained on."""
    path = write_jsonl(tmp_path / "d.jsonl", [{"messages": [ASK, call(arguments)]}])
    with pytest.raises(RowError, match=rf"d\.jsonl:1: .*{expected}"):
        read(path, template)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"messages": [ASK, call('{"a": 1')]},
            r"\(tool_calls.1.function.arguments\) is a text that is not valid JSON",
        ),
        ({"messages": [ASK, call('"{}"')]}, "is JSON within JSON. Encode arguments once"),
        (
            {"messages": [ASK, {**DONE, "tool_calls": "switch()"}]},
            r"Message 2 of 'messages' \(tool_calls\) is of type str",
        ),
        (
            {"messages": [ASK, {**DONE, "tool_calls": ["x"]}]},
            r"\(tool_calls.1\) is of type str; expected a function's call",
        ),
        ({"messages": [ASK, DONE], "tools": "search"}, "The field 'tools' is a text that is not valid JSON"),
        ({"messages": [ASK, DONE], "tools": 5}, "The field 'tools' is of type int"),
        ({"messages": [ASK, DONE], "tools": ["search"]}, "Tool 1 of 'tools' is of type str"),
        (
            {"messages": [ASK, call({"a": float("nan")})]},
            r"\(tool_calls.1.function.arguments.a\) is nan, which JSON cannot represent",
        ),
    ],
)
def test_structures_that_cannot_be_read_name_their_place(
    row: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    """File, line, message, and the way to the value."""
    with pytest.raises(RowError, match=rf"d\.jsonl:1: .*{expected}"):
        read(write_jsonl(tmp_path / "d.jsonl", [row]))


SHAREGPT = [
    {"from": "system", "value": "be brief"},
    {"from": "human", "value": "two?"},
    {"from": "gpt", "value": "four"},
]


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        ({"conversations": SHAREGPT}, {}),
        ({"conversations": SHAREGPT, "id": "1", "source": "x"}, {"format": "messages"}),
        ({"chat": SHAREGPT}, {"columns": {"messages": "chat"}}),
        ({"messages": SHAREGPT}, {}),
        ({"conversations": [{**each, "role": None} for each in SHAREGPT]}, {}),
        ({"conversations": SHAREGPT[1:], "system": "be brief"}, {}),
        ({"prompt": SHAREGPT[:2], "completion": SHAREGPT[2:]}, {}),
    ],
    ids=["auto", "named", "renamed", "messages", "padded", "system beside it", "prompt and completion"],
)
@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_sharegpt_is_read_as_messages(
    row: dict[str, Any], fields: dict[str, Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    """`from` and `value` in a column of any name."""
    suffix = ".jsonl" if write is write_jsonl else ".parquet"
    texts, said = read(write(tmp_path / f"d{suffix}", [row]), **fields)
    assert texts == [
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\ntwo?<|im_end|>\n"
        "<|im_start|>assistant\nfour<|im_end|>\n"
    ]
    assert said == ["four<|im_end|>"]


def test_sharegpt_calls_are_tool_calls(tmp_path: Path) -> None:
    """With the tools as JSON text, as LLaMA-Factory keeps them."""
    conversation = [
        {"from": "human", "value": "two?"},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2}}'},
        {"from": "observation", "value": "4"},
        {"from": "gpt", "value": "four"},
    ]
    row = {"conversations": conversation, "tools": json.dumps([TIME])}
    texts, said = read(write_jsonl(tmp_path / "d.jsonl", [row]))
    assert said == ['[add {"a": 2}]<|im_end|>four<|im_end|>']
    assert texts[0].startswith(json.dumps([TIME]))
    assert "<|im_start|>tool\n4<|im_end|>" in texts[0]


def test_another_format_that_fits_is_not_given_up_for_conversations(tmp_path: Path) -> None:
    """Data that was read before is read as before."""
    path = write_jsonl(tmp_path / "d.jsonl", [{"text": "a b", "conversations": SHAREGPT}])
    assert read(path)[0] == ["a b<|im_end|>"]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            {"from": "narrator", "value": "x"},
            "Message 2 of 'messages' has the sender 'narrator'; expected one of human",
        ),
        ({"from": "function_call", "value": "f(1)"}, "is a function_call whose value is not a call as JSON"),
    ],
)
def test_sharegpt_that_is_not_understood_is_refused(
    message: dict[str, str], expected: str, tmp_path: Path
) -> None:
    """A speaker that nobody knows would be trained as nobody's turn."""
    path = write_jsonl(tmp_path / "d.jsonl", [{"conversations": [SHAREGPT[1], message]}])
    with pytest.raises(RowError, match=rf"d\.jsonl:1: .*{expected}"):
        read(path)
