"""The quickstart's files agree with the scripts that make them and with the rest of the project."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from search_spaces.parsing.document import parse_definition
from search_spaces.pruning.specs import MedianPruning
from tests.support.checkout import QUICKSTART

MEGABYTE = 1_000_000


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (QUICKSTART / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    command = [sys.executable, str(QUICKSTART / "make_data.py"), "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return out


@pytest.mark.parametrize("name", ["train.jsonl", "eval.jsonl"])
def test_the_committed_data_is_what_the_generator_writes(regenerated: Path, name: str) -> None:
    assert (QUICKSTART / name).read_bytes() == (regenerated / name).read_bytes()


@pytest.mark.parametrize("field", ["prompt", "completion"])
def test_nothing_that_is_evaluated_was_trained_on(field: str) -> None:
    assert set() == {row[field] for row in rows("train.jsonl")} & {row[field] for row in rows("eval.jsonl")}


@pytest.mark.parametrize("name", ["train.jsonl", "eval.jsonl"])
def test_no_prompt_occurs_twice(name: str) -> None:
    prompts = [row["prompt"] for row in rows(name)]
    assert len(prompts) == len(set(prompts))


@pytest.mark.parametrize("name", ["train.jsonl", "eval.jsonl"])
def test_every_completion_is_a_json_action_as_the_library_writes_it(name: str) -> None:
    completions = [row["completion"] for row in rows(name)]
    assert completions == [json.dumps(json.loads(text)) for text in completions]
    assert all("action" in json.loads(text) for text in completions)


def test_evaluation_asks_for_every_action_that_training_teaches() -> None:
    taught, asked = (
        {json.loads(row["completion"])["action"] for row in rows(name)}
        for name in ("train.jsonl", "eval.jsonl")
    )
    assert taught == asked


def test_the_study_is_a_valid_definition() -> None:
    document = yaml.safe_load((QUICKSTART / "study.yaml").read_text(encoding="utf-8"))
    definition = parse_definition(document)
    assert definition.search.trials == 16
    assert list(definition.search.space.root) == [
        "learning_rate",
        "batch_size",
        "epochs",
        "weight_decay",
        "lora_r",
    ]
    assert isinstance(definition.pruning, MedianPruning)


def test_the_study_names_files_that_are_there() -> None:
    document = yaml.safe_load((QUICKSTART / "study.yaml").read_text(encoding="utf-8"))
    named = (document["model"]["id"], document["data"]["train"], document["data"]["eval"])
    assert [(QUICKSTART / path).exists() for path in named] == [True, True, True]


def test_the_base_fits_into_ten_megabytes() -> None:
    size = sum(path.stat().st_size for path in (QUICKSTART / "base").iterdir())
    assert size <= 10 * MEGABYTE


def test_the_text_of_the_base_holds_no_json_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(QUICKSTART))
    from pretraining_text import documents

    assert [text for text in documents(5_000) if '{"' in text] == []


def test_the_base_loads_and_its_tokenizer_gives_every_row_back() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(QUICKSTART / "base", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART / "base", local_files_only=True)
    texts = [row["prompt"] + row["completion"] for row in rows("eval.jsonl")]
    encoded = tokenizer(texts)["input_ids"]

    assert texts == [tokenizer.decode(ids) for ids in encoded]
    assert len(tokenizer) == model.config.vocab_size
    assert max(map(len, encoded)) < model.config.max_position_embeddings
    widths = {size for name, p in model.named_parameters() if "norm" not in name for size in p.shape}
    assert set() == {width for width in widths if width % 64}
