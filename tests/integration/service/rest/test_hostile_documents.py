"""Definitions made to break the server, or to make it read what it must not."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets.packaged_modules
import pytest
from starlette.testclient import TestClient

from service.definitions.local_files import READER_NAMES
from service.settings import Settings
from tests.support.service.api import Make, expect_problem, stored

JSON = {"content-type": "application/json"}
YAML = {"content-type": "application/yaml"}
SECONDS = 5.0
"""Nothing that fits the body limit may keep the server busy for longer; what was found took up to 23 s."""


@pytest.fixture
def backend() -> str:
    """Nothing here depends on the database."""
    return "sqlite"


def faults(client: TestClient, document: Any) -> dict[str, str]:
    """Path -> message of a definition's faults; nothing may be stored."""
    body = json.dumps(document)  # unlike httpx, it writes NaN
    problem = expect_problem(client.post("/v1/studies", content=body, headers=JSON), 422)
    assert stored(client) == 0
    return {fault["path"]: fault["message"] for fault in problem["faults"]}


# Numbers that are none


@pytest.mark.parametrize(
    "path",
    [
        "recipe.learning_rate",
        "recipe.lora_r",
        "search.seed",
        "search.trials",
        "search.space.learning_rate.min",
        "search.space.batch_size.choices.0",
        "search.space.batch_size.when.lora_r",
        "budget.max_gpu_hours",
        "budget.target_value",
        "evaluation.divergence_factor",
        "constraints.eval_loss.max",
        "resources.gpus_per_worker",
        "data.max_length",
        "name",
    ],
)
def test_a_number_that_is_none_is_a_fault_wherever_it_stands(
    client: TestClient, definition: Make, path: str
) -> None:
    document = definition()
    *parents, last = path.split(".")
    place: Any = document
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
    if isinstance(place, list):
        place[int(last)] = "HERE"
    else:
        place[last] = "HERE"
    for number in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999"):
        body = json.dumps(document).replace('"HERE"', number)
        problem = expect_problem(client.post("/v1/studies", content=body, headers=JSON), 422)
        assert any(fault["path"].startswith(path.removesuffix(".0")) for fault in problem["faults"]), problem
        yaml = body.replace("NaN", ".nan").replace("Infinity", ".inf")
        expect_problem(client.post("/v1/studies", content=yaml, headers=YAML), 422)
    assert stored(client) == 0


# Hub ids that are something else


@pytest.mark.parametrize(
    "name",
    [
        "https://evil.example/model",
        "http://user:secret@evil.example/m",
        "file:///etc/passwd",
        "hf://org/model",
        "s3://bucket/model",
        "//evil.example/share",
        "org/../../etc",
        "org/model/../../..",
        "..",
        "~root/model",
        "org\\model",
        "org/model@main",
        "org/model?x=1",
        "org/model#x",
        "\u043erg/model",
        "org/mod\u200bel",
        "org /model",
        "org/model\n",
        "-rf/model",
    ],
)
def test_a_model_or_data_set_is_a_hub_id_or_a_path_in_the_roots_and_nothing_else(
    client: TestClient, definition: Make, name: str
) -> None:
    assert list(faults(client, definition(model={"id": name}))) == ["model.id"]
    hub = {"hub": name, "split": "train"}
    assert list(faults(client, definition(data={"train": hub, "eval": hub}))) == [
        "data.train.hub",
        "data.eval.hub",
    ]
    assert list(faults(client, definition(data={"train": name, "eval": "eval.jsonl"}))) == ["data.train"]


@pytest.mark.parametrize("name", ["json", "text", "csv", "imagefolder", "sql", "buckets"])
def test_a_reader_of_the_datasets_library_is_no_data_set(
    client: TestClient, definition: Make, name: str
) -> None:
    """`text` would read every text file in the worker's current folder."""
    data = {"train": {"hub": name, "split": "train"}, "eval": "eval.jsonl"}
    assert list(faults(client, definition(data=data))) == ["data.train.hub"]


def test_every_reader_of_the_installed_library_is_known_by_name() -> None:
    assert set(datasets.packaged_modules._PACKAGED_DATASETS_MODULES) <= READER_NAMES


# Paths and links


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_model_folder_with_a_link_out_of_the_roots_is_refused(
    client: TestClient, definition: Make, settings: Settings, tmp_path: Path, file: str
) -> None:
    (tmp_path / "secret").write_text("{}")
    folder = settings.data_roots[0] / "model"
    folder.mkdir()
    (folder / "inside").write_text("")
    (folder / "fine").symlink_to(folder / "inside")
    (folder / file).symlink_to(tmp_path / "secret")
    found = faults(client, definition(model={"id": "./model"}))
    assert found == {"model.id": f"contains the link {file!r}, which points outside the data roots"}


@pytest.mark.parametrize(
    "link", ["loop.jsonl", "loop/x.jsonl", "x" * 300, "x" * 300 + "/y.jsonl", "a/" * 3000]
)
def test_paths_that_lead_nowhere_are_faults(
    client: TestClient, definition: Make, settings: Settings, link: str
) -> None:
    root = settings.data_roots[0]
    (root / "loop").symlink_to("loop")
    (root / "loop.jsonl").symlink_to("loop.jsonl")
    assert list(faults(client, definition(data={"train": link, "eval": "eval.jsonl"}))) == ["data.train"]
    assert "model.id" in faults(client, definition(model={"id": f"./{link}"}))


@pytest.mark.parametrize("file", ["/dev/zero", "/proc/self/environ", "/etc/passwd", "pipe.jsonl"])
def test_devices_and_pipes_are_not_opened(
    client: TestClient, definition: Make, settings: Settings, file: str
) -> None:
    import os

    os.mkfifo(settings.data_roots[0] / "pipe.jsonl")
    assert list(faults(client, definition(data={"train": file, "eval": "eval.jsonl"}))) == ["data.train"]


# Documents that cost more than they weigh

_MILLION = 990_000
COSTLY: dict[str, Callable[[Make], tuple[bytes, dict[str, str]]]] = {
    "a path of a million characters": lambda make: (
        json.dumps(make(data={"train": "a/" * 490_000, "eval": "../" * 1000})).encode(),
        JSON,
    ),
    "a model of a million characters": lambda make: (
        json.dumps(make(model={"id": "./" + "a/" * 490_000})).encode(),
        JSON,
    ),
    "a key of a million characters": lambda make: (json.dumps(make(**{"k" * _MILLION: 1})).encode(), JSON),
    "sixty thousand unknown keys": lambda make: (
        json.dumps(make(**{f"key{i}": 1 for i in range(60_000)})).encode(),
        JSON,
    ),
    "a list of a million lists": lambda make: (b"[" + b"[]," * 330_000 + b"1]", JSON),
    "a million brackets": lambda make: (b"[" * _MILLION, JSON),
    "a million digits": lambda make: (b'{"name": ' + b"9" * _MILLION + b"}", JSON),
    "yaml: a million brackets": lambda make: (b"[" * _MILLION, YAML),
    "yaml: a list of a million lists": lambda make: (b"[" + b"[]," * 330_000 + b"1]", YAML),
    "yaml: a number of base sixty": lambda make: (b"name: 1" + b":59" * 330_000, YAML),
    "yaml: a million digits": lambda make: (b"name: " + b"9" * _MILLION, YAML),
    "yaml: a million hexadecimal digits": lambda make: (b"name: 0x" + b"f" * _MILLION, YAML),
    "yaml: a million keys without a name": lambda make: (b"?\n" * 490_000, YAML),
    "yaml: a hundred thousand documents": lambda make: (b"--- a\n" * 100_000, YAML),
    "yaml: billions of values": lambda make: (
        b"\n".join(
            [b"a0: &a0 [x, x]", *(b"a%d: &a%d [*a%d, *a%d]" % (i, i, i - 1, i - 1) for i in range(1, 40))]
        ),
        YAML,
    ),
}


@pytest.mark.parametrize("case", COSTLY)
def test_a_costly_document_is_refused_soon(client: TestClient, definition: Make, case: str) -> None:
    body, headers = COSTLY[case](definition)
    started = time.process_time()
    answer = client.post("/v1/studies", content=body, headers=headers)
    assert time.process_time() - started < SECONDS
    expect_problem(answer, answer.status_code)
    assert answer.status_code in (400, 422)
    assert len(answer.content) < 100_000
    assert stored(client) == 0


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("name: !!python/object/apply:os.system [id]", "tags"),
        ("name: !include /etc/passwd", "tags"),
        ("!!binary aGVsbG8=", "tags"),
        ("a: &x 1\nb: *x", "anchors"),
        ("<<: {name: x}", "merge"),
        ("name: a\nname: b", "Duplicate key"),
        ("%YAML 9.9\n--- {}", "YAML"),
    ],
)
def test_yaml_is_plain_values(client: TestClient, yaml: str, words: str) -> None:
    problem = expect_problem(client.post("/v1/studies", content=yaml, headers=YAML), 400)
    assert words in problem["detail"]


def test_what_looks_like_a_time_or_a_date_in_yaml_is_text(client: TestClient, definition: Make) -> None:
    """YAML 1.1 would read 22:30 as 1,350."""
    for written in ("22:30", "2026-01-31", "0o17", "1_000"):
        body = json.dumps(definition(name="HERE")).replace('"HERE"', written)
        answer = client.post("/v1/studies", content=body, headers=YAML)
        shown = answer.json()["name"] if answer.status_code == 201 else answer.json()["faults"][0]["value"]
        assert shown == written
