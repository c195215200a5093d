"""DPO's reference: what the base alone gives both answers, computed once and kept on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from search_spaces.data_report import LoadingLimits
from search_spaces.definition import DataSpec, ModelSpec
from search_spaces.recipe import Recipe
from tests.support.workers.limited_memory import LimitedMemory
from tests.support.workers.trials import random_examples, trial_order
from workers.base.base_model import LoadedBase, load_base
from workers.data.datasets import TokenizedData
from workers.data.examples import Example, PairExample
from workers.device.heartbeat import UNWATCHED
from workers.lora.adapters import AdapterHost
from workers.pack.loaded import LoadedStudies
from workers.training.objectives import references as module
from workers.training.objectives.references import needs_references, shared_references, with_references
from workers.training.shared_pass import DoesNotFitError, SharedPasses

# PEFT 0.21 uses a property that transformers 5.23 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CPU = torch.device("cpu")


def pairs(count: int, *, seed: int = 0) -> TokenizedData:
    """Pairs of random rows of 4 to 20 tokens."""
    rows = random_examples(2 * count, seed=seed)
    examples = tuple(PairExample(*both) for both in zip(rows[::2], rows[1::2], strict=True))
    return TokenizedData(examples, "preference", count, 0, 0, 1, 1)


DATA = pairs(7)


def known(data: TokenizedData) -> list[float]:
    """The log-probabilities, chosen and rejected in turn."""
    found: list[float] = []
    for example in data.examples:
        assert isinstance(example, PairExample)
        assert example.reference is not None
        found += example.reference
    return found


def rows_of(data: TokenizedData) -> list[Example]:
    return [
        row for pair in data.examples if isinstance(pair, PairExample) for row in (pair.chosen, pair.rejected)
    ]


@torch.no_grad()
def plain(model: Any, rows: Sequence[Example]) -> list[float]:
    """Each row by itself, with the loss that transformers computes."""
    losses = [model(input_ids=row.input_ids[None], labels=row.labels[None]).loss for row in rows]
    return [-float(loss) * row.supervised_tokens for loss, row in zip(losses, rows, strict=True)]


@pytest.fixture(scope="module")
def base(tiny_base_dir: Path) -> LoadedBase:
    return load_base(ModelSpec(id=str(tiny_base_dir), quantization="none"), CPU, task="preference")


@pytest.fixture
def passes(base: LoadedBase) -> SharedPasses:
    return SharedPasses(AdapterHost(base), token_budget=200)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The pairs of each data set that was computed, not read."""
    counts: list[int] = []
    compute = module.references

    def counted(host: Any, budget: int, data: TokenizedData, heartbeat: Any) -> Any:
        counts.append(len(data.examples))
        return compute(host, budget, data, heartbeat)

    monkeypatch.setattr(module, "references", counted)
    return counts


@pytest.mark.parametrize("budget", [1, 90, 10**6])
@pytest.mark.parametrize("adapters", [0, 2])
def test_it_is_what_transformers_gives_whatever_the_batches_and_the_adapters(
    tiny_base_dir: Path, base: LoadedBase, budget: int, adapters: int
) -> None:
    host = AdapterHost(base)
    for number in range(adapters):
        adapter = host.add(str(number), Recipe(lora_r=4 + number))
        torch.nn.init.normal_(adapter.master)
    expected = plain(AutoModelForCausalLM.from_pretrained(tiny_base_dir).eval(), rows_of(DATA))
    try:
        assert known(with_references(host, budget, DATA, UNWATCHED)) == pytest.approx(expected, abs=1e-4)
    finally:
        for number in range(adapters):
            host.remove(str(number))


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_it_is_what_peft_gives_with_its_adapter_disabled(tiny_base_dir: Path, quantization: Any) -> None:
    spec = ModelSpec(id=str(tiny_base_dir), quantization=quantization)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    peft = get_peft_model(load_base(spec, CPU).model, config)
    adapted = plain(peft, rows_of(DATA))
    with peft.disable_adapter():
        expected = plain(peft, rows_of(DATA))
    host = AdapterHost(load_base(spec, CPU, task="preference"))
    assert known(with_references(host, 200, DATA, UNWATCHED)) == pytest.approx(expected, abs=1e-4)
    assert adapted != pytest.approx(expected, abs=1e-1)


def test_it_is_computed_once_and_then_read(passes: SharedPasses, computed: list[int], tmp_path: Path) -> None:
    first, second = (
        shared_references(passes, DATA, UNWATCHED, cache_dir=str(tmp_path / "cache"), origin="base")
        for _ in range(2)
    )
    assert computed == [7]
    assert known(second) == known(first)
    (file,) = (tmp_path / "cache" / "references").iterdir()
    assert file.stat().st_size == 32 + 7 * 8
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_without_a_folder_nothing_is_kept(passes: SharedPasses, computed: list[int]) -> None:
    for _ in range(2):
        shared_references(passes, DATA, UNWATCHED)
    assert computed == [7, 7]


def test_another_base_or_other_pairs_have_their_own(
    tiny_base_dir: Path, passes: SharedPasses, computed: list[int], tmp_path: Path
) -> None:
    quantized = load_base(ModelSpec(id=str(tiny_base_dir), quantization="nf4"), CPU, task="preference")
    others = SharedPasses(AdapterHost(quantized), token_budget=200)
    backwards = replace(DATA, examples=DATA.examples[::-1])
    for given, data, origin in (
        (passes, DATA, "base"),
        (passes, DATA, "the base with other weights"),
        (passes, backwards, "base"),
        (passes, pairs(7, seed=1), "base"),
        (others, DATA, "base"),
    ):
        found = shared_references(given, data, UNWATCHED, cache_dir=str(tmp_path), origin=origin)
        expected = with_references(given.host, 200, data, UNWATCHED)
        assert known(found) == pytest.approx(known(expected), abs=1e-5)
    assert computed == [7] * 10  # each computed, and once more for the comparison
    assert len(list((tmp_path / "references").iterdir())) == 5


@pytest.mark.parametrize("content", [b"", b"x" * 88, b"x" * 200, "changed", "another's"])
def test_a_file_that_is_not_what_was_written_is_replaced(
    passes: SharedPasses, computed: list[int], tmp_path: Path, content: bytes | str
) -> None:
    options: dict[str, Any] = {"cache_dir": str(tmp_path), "origin": "base"}
    expected = known(shared_references(passes, DATA, UNWATCHED, **options))
    (file,) = (tmp_path / "references").iterdir()
    whole = file.read_bytes()
    if content == "changed":
        content = whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]
    elif content == "another's":
        shared_references(passes, pairs(7, seed=1), UNWATCHED, **options)
        (other,) = set((tmp_path / "references").iterdir()) - {file}
        content = other.read_bytes()
    assert isinstance(content, bytes)
    file.write_bytes(content)
    computed.clear()
    assert known(shared_references(passes, DATA, UNWATCHED, **options)) == pytest.approx(expected, abs=1e-5)
    assert computed == [7]
    assert file.read_bytes() == whole


def test_a_folder_that_cannot_be_used_is_no_reason_to_fail(
    passes: SharedPasses, computed: list[int], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "references").mkdir()
    for place in (tmp_path / "file", tmp_path):
        (file,) = [shared_references(passes, DATA, UNWATCHED, cache_dir=str(place), origin=1) for _ in "1"]
        assert len(known(file)) == 14
        for made in (tmp_path / "references").iterdir():  # a folder in the file's place
            made.unlink()
            made.mkdir()
    shared_references(passes, DATA, UNWATCHED, cache_dir=str(tmp_path), origin=1)
    assert computed == [7, 7, 7]
    assert [file.suffix for file in (tmp_path / "references").iterdir()] == [".references"]


def test_files_that_were_used_longest_ago_are_removed(
    passes: SharedPasses, computed: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "references"
    monkeypatch.setattr(module, "MOST_BYTES", 2 * 88)
    options: dict[str, Any] = {"cache_dir": str(tmp_path)}
    shared_references(passes, DATA, UNWATCHED, origin="a", **options)
    (first,) = folder.iterdir()
    (folder / "draft-of-a-worker-that-died.part").write_bytes(bytes(88))
    (folder / "of somebody else").touch()
    for file in folder.iterdir():
        os.utime(file, (1, 1))
    shared_references(passes, DATA, UNWATCHED, origin="a", **options)  # read, so used now
    shared_references(passes, DATA, UNWATCHED, origin="b", **options)
    left = {file.name for file in folder.iterdir()}
    assert first.name in left
    assert "draft-of-a-worker-that-died.part" not in left
    assert "of somebody else" in left
    os.utime(first, (1, 1))
    shared_references(passes, DATA, UNWATCHED, origin="c", **options)
    assert not first.exists()
    assert computed == [7, 7, 7]


def test_two_workers_may_compute_the_same(
    passes: SharedPasses, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compute = module.references

    def beside_another(*args: Any) -> Any:
        monkeypatch.setattr(module, "references", compute)
        shared_references(passes, DATA, UNWATCHED, cache_dir=str(tmp_path))  # the other is first
        return compute(*args)

    monkeypatch.setattr(module, "references", beside_another)
    first = shared_references(passes, DATA, UNWATCHED, cache_dir=str(tmp_path))
    assert known(shared_references(passes, DATA, UNWATCHED, cache_dir=str(tmp_path))) == known(first)
    assert len(list((tmp_path / "references").iterdir())) == 1


def test_numbers_that_are_not_finite_are_not_kept(
    passes: SharedPasses, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "references", lambda *_: [(float("nan"), 0.0)] * 7)
    shared_references(passes, DATA, UNWATCHED, cache_dir=str(tmp_path))
    assert not (tmp_path / "references").exists()


def test_out_of_memory_halves_the_passes(base: LoadedBase) -> None:
    passes = SharedPasses(AdapterHost(base), token_budget=200)
    expected = known(with_references(passes.host, 200, DATA, UNWATCHED))
    longest = max(example.length for example in DATA.examples)
    with LimitedMemory.of(base, 2 * longest) as memory:
        found = shared_references(passes, DATA, UNWATCHED)
    assert known(found) == pytest.approx(expected, abs=1e-5)
    assert memory.refused > 0
    assert passes.token_budget < 200


def test_one_pair_that_does_not_fit_is_said(base: LoadedBase) -> None:
    passes = SharedPasses(AdapterHost(base), token_budget=200)
    with (
        LimitedMemory.of(base, 8),
        pytest.raises(DoesNotFitError, match=r"^computing the reference of one pair of \d+ tokens$"),
    ):
        shared_references(passes, DATA, UNWATCHED)


def test_only_dpo_needs_it() -> None:
    needing = {loss: needs_references(Recipe(loss=loss), DATA) for loss in (None, "dpo", "orpo", "simpo")}
    assert needing == {None: True, "dpo": True, "orpo": False, "simpo": False}


def test_a_worker_that_comes_later_reads_what_an_earlier_one_computed(
    tiny_base_dir: Path, computed: list[int], tmp_path: Path
) -> None:
    rows = [f'{{"prompt": "what is {i}?", "chosen": " it is {i}", "rejected": " nothing"}}' for i in range(9)]
    for name, count in (("train", 9), ("eval", 4)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows[:count]))
    data = DataSpec(train=str(tmp_path / "train.jsonl"), eval=str(tmp_path / "eval.jsonl"), max_length=64)
    order = replace(
        trial_order(tmp_path, tiny_base_dir, data=data, quantization="none", recipe=Recipe()),
        task="preference",
        limits=LoadingLimits(cache_dir=str(tmp_path / "cache")),
    )
    first, second = (LoadedStudies(CPU).load(order, []) for _ in range(2))
    assert computed == [9, 4]
    assert known(first.train) == known(second.train)
    assert known(first.evaluation) == known(second.evaluation)
    (weights,) = tiny_base_dir.glob("*.safetensors")
    stat = weights.stat()
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))  # as if it were another file
    try:
        LoadedStudies(CPU).load(order, [])
    finally:
        os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert computed == [9, 4, 9, 4]
