"""Rows of data in files of every kind, and what they become with a tiny tokenizer."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from transformers import PreTrainedTokenizerBase

from search_spaces.definition import DataSpec, ModelSpec
from search_spaces.tasks import Task
from tests.support.workers.models import build_tiny_tokenizer
from workers.base.heads import Labels
from workers.data.datasets import load_data

TOOLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' }}{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}"
    "{{ '[' + call.function.name + ' ' }}{{ call.function.arguments | tojson }}{{ ']' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""A chat template that writes arguments as JSON, from an object, as most do."""
TOOLS_AS_TEXT = TOOLS.replace("{{ call.function.arguments | tojson }}", "{{ call.function.arguments }}")
"""One that prints what it is given."""


@dataclass(frozen=True)
class TinyReader:
    """What data is read with, without a model."""

    tokenizer: PreTrainedTokenizerBase
    spec: ModelSpec = field(default_factory=lambda: ModelSpec(id="tiny"))
    vocabulary_size: int = 10_000
    max_positions: int | None = None
    task: Task = "causal_lm"
    labels: Labels | None = None
    row_end_id: int | None = None


@cache
def _tokenizer(template: str) -> PreTrainedTokenizerBase:
    return build_tiny_tokenizer(chat_template=template)


def read(source: Path | dict[str, str], template: str = TOOLS, **fields: Any) -> tuple[list[str], list[str]]:
    """The rows of a file or a hub data set as text, and what of each carries loss."""
    tokenizer = _tokenizer(template)
    given = str(source) if isinstance(source, Path) else source
    spec = DataSpec.model_validate({"train": given, "eval": given, "max_length": 4000, **fields})
    data, _ = load_data(spec, TinyReader(tokenizer))
    texts = [tokenizer.decode(example.input_ids) for example in data.examples]
    labels = [[label for label in example.labels.tolist() if label != -100] for example in data.examples]
    return texts, [tokenizer.decode(kept) for kept in labels]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_json(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows, indent=2))
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Lists become JSON in a cell, and what a row lacks an empty cell."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for row in rows:
            writer.writerow(json.dumps(row[name]) if name in row else "" for name in names)
    return path
