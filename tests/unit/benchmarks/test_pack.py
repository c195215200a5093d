"""What the engine's benchmark counts, and how it shows it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import LlamaConfig

from benchmarks.alike_trials import ALONE, Bench, Row
from benchmarks.arithmetic import flops_per_token
from benchmarks.pack import best_at, header, line, parse
from benchmarks.plain_loop import plain_tokens_per_second
from benchmarks.shapes import random_base, random_examples
from search_spaces.definition import ModelSpec
from search_spaces.recipe import Recipe

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Trials of two rows per step, in passes that hold six rows."""
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    base = random_base("tiny", config, ModelSpec(id="tiny", quantization="nf4"), torch.device("cpu"))
    examples = random_examples(8, vocabulary=96, longest=16, shortest=16, supervised=0.5)
    recipe = Recipe(batch_size=2, epochs=10_000, learning_rate=1e-6, lora_r=4)
    bench = Bench(base, examples, recipe, token_budget=96)
    yield bench
    bench.close()
    assert not any("lora" in name for name, _ in base.model.named_modules())


def row(batch_size: int, trials: int, speedup: float, share_of_peak: float | None = None) -> Row:
    return Row(
        batch_size=batch_size,
        trials=trials,
        tokens_per_second={ALONE: 1_000.0, "looped": 1_900.0, "batched": 1_000 * speedup},
        packed="batched",
        speedup=speedup,
        useful=0.9,
        tokens_per_pass=2_000.0,
        peak_bytes=3 * 2**29,
        share_of_peak=share_of_peak,
    )


def test_operations_are_counted_as_a_person_would(bench: Bench) -> None:
    attention = 32 * 32 + 2 * 32 * 16 + 32 * 32
    frozen = 2 * (attention + 3 * 32 * 64)
    rank = 4
    lora = 2 * rank * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
    expected = 2 * 2 * frozen + 0.25 * 2 * 2 * 96 * 32 + 3 * 2 * lora
    assert flops_per_token(bench.host, bench.runs[0].adapter, supervised=0.25) == expected


def test_a_measurement_counts_rows_of_all_trials(bench: Bench) -> None:
    bench.grow(3)
    speed = bench.measure(bench.runs, "looped", steps=2, least_seconds=0.0)
    assert speed.tokens == speed.padded == 3 * 2 * 2 * 16
    assert speed.passes == 2
    assert [run.steps for run in bench.runs] == [2, 2, 2]


def test_one_at_a_time_leaves_the_others_alone(bench: Bench) -> None:
    bench.grow(2)
    bench.measure(bench.runs[1:], "looped", steps=3, least_seconds=0.0)
    assert [run.steps for run in bench.runs] == [0, 3]


def test_the_plain_loop_trains_and_leaves_the_base_as_it_was(bench: Bench) -> None:
    base = bench.host.base
    bench.close()
    attention = base.model.config._attn_implementation
    recipe = Recipe(batch_size=2, learning_rate=1e-3, lora_r=4)
    rate = plain_tokens_per_second(base, bench._examples, recipe, rounds=1, least_seconds=0.0)
    assert rate > 0
    assert base.model.config._attn_implementation == attention
    assert not any("lora" in name for name, _ in base.model.named_modules())


def test_trials_have_seeds_of_their_own(bench: Bench) -> None:
    bench.grow(2)
    first, second = (run.adapter.master for run in bench.runs)
    assert not torch.equal(first, second)


def test_the_best_row_is_of_one_batch_size() -> None:
    rows = [row(1, 1, 1.0), row(1, 8, 2.5), row(1, 32, 2.4), row(8, 8, 9.0)]
    assert best_at(rows, 1) is rows[1]


def test_the_table_has_a_column_for_every_number() -> None:
    forms = ["looped", "batched"]
    assert line(row(8, 16, 2.0), forms, 800.0) == (
        "| 8 | 16 | 800 | 1,000 | 1,900 | 2,000 | 2,000 (batched) | 2.00 | 90% | 2,000 | 1.50 |"
    )
    for share in (None, 0.4):
        top, rule = header(forms, with_peak=share is not None).splitlines()
        assert top.count("|") == rule.count("|") == line(row(8, 16, 2.0, share), forms, 800.0).count("|")


def test_options_are_lists_in_order() -> None:
    options = parse(["--trials", "8,1,8", "--form", "batched,looped", "--tokens", "100"])
    assert options.trials == [1, 8]
    assert options.batch_sizes == [1, 8, 32]
    assert options.form == ["looped", "batched"]
    assert options.shortest == 50


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--form", "stacked"], "no form stacked"),
        (["--tokens", "16", "--shortest", "17"], "--shortest is 17"),
        (["--trials", "many"], "--trials"),
    ],
)
def test_wrong_options_are_named(
    arguments: list[str], fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    assert fault in capsys.readouterr().err
