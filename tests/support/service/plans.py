"""Definitions and reports to plan with."""

from __future__ import annotations

from typing import Any

from search_spaces.data_report import CutRows, DataReport, SplitReport
from search_spaces.definition import StudyDefinition
from search_spaces.parsing.document import parse_definition


def make_definition(**sections: Any) -> StudyDefinition:
    """100 training rows would be 25 steps of batch 4, or 7 of batch 16, an epoch."""
    search = {
        "algorithm": "tpe",
        "trials": 12,
        "space": {
            "learning_rate": {"min": 1e-4, "max": 1e-3, "scale": "log"},
            "batch_size": {"choices": [4, 16]},
            "epochs": {"min": 1, "max": 3, "type": "int"},
        },
    }
    return parse_definition(
        {
            "name": "tone",
            "model": {"id": "org/base"},
            "data": {"train": "train.jsonl", "eval": "eval.jsonl", "max_length": 64},
            "recipe": {"warmup_ratio": 0.1},
            "search": {**search, **sections.pop("search", {})},
            **sections,
        }
    )


def make_split(rows: int | None = 100, **changes: Any) -> SplitReport:
    read = changes.pop("rows_read", rows or 0)
    cut = {
        "max_length": 64,
        "usable_rows": read,
        "truncated_rows": 0,
        "cut_away_rows": 0,
        "tokens": 20 * read,
        "supervised_tokens": 8 * read,
        **changes.pop("cut", {}),
    }
    values: dict[str, Any] = {
        "source": "train.jsonl",
        "rows": rows,
        "rows_counted": rows or read,
        "rows_read": read,
        "faulty_rows": 0,
        "unsupervised_rows": 0,
        "median_tokens": 20,
        "p95_tokens": 30,
        "longest_tokens": 40,
        "by_length": (CutRows(**cut),),
        "duplicate_rows": 0,
        "labels": None,
        "tasks": None,
    }
    return SplitReport(**{**values, **changes})


def make_data(
    train: SplitReport | None = None, evaluation: SplitReport | None = None, **changes: Any
) -> DataReport:
    values: dict[str, Any] = {
        "format": "text",
        "train": train or make_split(),
        "eval": evaluation or make_split(50),
        "overlap_rows": 0,
        "examples": (),
    }
    return DataReport(**{**values, **changes})
