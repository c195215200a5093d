"""NEFTune's noise: its size, where it is, and that it depends on a row's own counters only."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BertConfig,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    T5Config,
)

from workers.lora.lora_dropout import keep_scale, row_keys, uniform_noise
from workers.lora.neftune import noisy_embeddings

FEATURES = 24
SMALL: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": FEATURES,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "pad_token_id": 0,
}


def build(kind: Any, config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = kind.from_config(config).to(dtype).eval()
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return build(AutoModelForCausalLM, LlamaConfig(**SMALL))


def noise(
    model: PreTrainedModel, alphas: list[float], keys: list[int], lengths: list[int], tokens: int
) -> torch.Tensor:
    """What is added to the embeddings, float32 [B, T, d]."""
    ids = torch.arange(len(keys) * tokens).view(len(keys), tokens) % 50 + 1
    embed = model.get_input_embeddings()
    with noisy_embeddings(model, torch.tensor(alphas), torch.tensor(keys), torch.tensor(lengths)):
        noisy = embed(ids)
    difference: torch.Tensor = noisy.double() - embed(ids).double()
    return difference.float()


def test_noise_is_uniform_up_to_alpha_over_the_root_of_tokens_times_features(model: PreTrainedModel) -> None:
    alphas, lengths = [5.0, 10.0, 5.0], [400, 400, 100]
    found = noise(model, alphas, row_keys(0, 0, range(3)), lengths, 400)
    for row, alpha, length in zip(found, alphas, lengths, strict=True):
        size = alpha / math.sqrt(length * FEATURES)
        parts = (row[:length] / size).flatten().sort().values
        assert parts.abs().max().item() <= 1 + 1e-4
        # The Kolmogorov-Smirnov distance to the uniform distribution; 1.95 is exceeded once in a thousand.
        distance = (parts - torch.linspace(-1, 1, len(parts))).abs().max().item() / 2
        assert distance < 1.95 / math.sqrt(len(parts))


def test_padding_and_rows_without_noise_are_left_as_they_are(model: PreTrainedModel) -> None:
    found = noise(model, [5.0, 0.0, 5.0], row_keys(0, 0, range(3)), [3, 8, 8], 8)
    assert (found[0, :3] != 0).all()
    assert not found[0, 3:].any()
    assert not found[1].any()


@settings(max_examples=30)
@given(
    seed=st.integers(0, 99),
    step=st.integers(0, 99),
    lengths=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    padding=st.integers(0, 5),
    data=st.data(),
)
def test_a_rows_noise_depends_on_neither_pack_mates_nor_padding(
    model: PreTrainedModel, seed: int, step: int, lengths: list[int], padding: int, data: st.DataObject
) -> None:
    keys = row_keys(seed, step, range(len(lengths)))
    alphas = [float(i) for i in range(len(lengths))]
    order = data.draw(st.permutations(range(len(lengths))))
    tokens = max(lengths) + padding
    ids = torch.zeros(len(lengths), tokens, dtype=torch.int64)
    embed = model.get_input_embeddings()
    given_values = [torch.tensor([values[i] for i in order]) for values in (alphas, keys, lengths)]
    with noisy_embeddings(model, *given_values):
        together = embed(ids)
    for place, i in enumerate(order):
        one = [torch.tensor([values[i]]) for values in (alphas, keys, lengths)]
        with noisy_embeddings(model, *one):
            alone = embed(torch.zeros(1, lengths[i], dtype=torch.int64))
        assert torch.equal(together[place, : lengths[i]], alone[0])


@pytest.mark.parametrize("what", ["examples", "steps", "seeds"])
def test_another_example_step_or_seed_has_noise_of_its_own(what: str) -> None:
    match what:
        case "examples":
            keys = row_keys(0, 0, range(40))
        case "steps":
            keys = [key for step in range(40) for key in row_keys(0, step, [0])]
        case _:
            keys = [key for seed in range(40) for key in row_keys(seed, 0, [0])]
    rows = uniform_noise(torch.tensor(keys), -1, 32, 64).flatten(1).double() * math.sqrt(3)
    pairs = torch.triu_indices(len(rows), len(rows), offset=1)
    z = (rows @ rows.T)[pairs[0], pairs[1]] / math.sqrt(rows.shape[1])
    assert z.square().mean().sqrt().item() == pytest.approx(1.0, abs=4 / math.sqrt(2 * len(z)))
    assert z.abs().max().item() < 5.5


def test_tokens_and_features_are_independent_also_of_a_dropout_mask() -> None:
    keys = torch.tensor(row_keys(3, 1, [2]))
    z = uniform_noise(keys, -1, 512, 512)[0].double() * math.sqrt(3)
    squares = z.square()
    products = (z @ z.T).square() - squares @ squares.T
    total = (products.sum() - products.diagonal().sum()).item()
    assert abs(total / 4) < 4 * math.sqrt(math.comb(512, 2) ** 2)
    mask = keep_scale(keys, 0, 512, 512, torch.tensor([0.5]), torch.float32)[0].double() - 1
    assert abs((z * mask).sum().item()) < 4 * 512


def test_the_hook_ends_with_its_context_also_after_an_error(model: PreTrainedModel) -> None:
    embed, ids = model.get_input_embeddings(), torch.ones(1, 4, dtype=torch.int64)
    before = embed(ids)
    values = torch.ones(1), torch.ones(1, dtype=torch.int64), torch.full((1,), 4)

    def fail_inside() -> None:
        with noisy_embeddings(model, *values):
            assert not torch.equal(embed(ids), before)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert torch.equal(embed(ids), before)


def test_embeddings_in_half_precision_stay_so_and_get_the_same_noise() -> None:
    config = OPTConfig(**{**SMALL, "ffn_dim": 16, "word_embed_proj_dim": FEATURES})
    half = build(AutoModelForCausalLM, config, torch.bfloat16)
    half.get_input_embeddings().weight.zero_()
    values = torch.tensor([50.0]), torch.tensor([7]), torch.tensor([5])
    with noisy_embeddings(half, *values):
        noisy = half.get_input_embeddings()(torch.ones(1, 5, dtype=torch.int64))
    assert noisy.dtype == torch.bfloat16
    expected = uniform_noise(values[1], -1, 5, FEATURES) * 50 / math.sqrt(5 * FEATURES)
    torch.testing.assert_close(noisy, expected.bfloat16())


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (AutoModelForCausalLM, LlamaConfig(**SMALL)),
        (AutoModel, BertConfig(**SMALL)),
        (AutoModelForSeq2SeqLM, T5Config(vocab_size=60, d_model=FEATURES, d_kv=8, d_ff=16, num_layers=1)),
        (
            AutoModelForSeq2SeqLM,
            BartConfig(
                vocab_size=60,
                d_model=FEATURES,
                encoder_layers=1,
                decoder_layers=1,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
            ),
        ),
    ],
    ids=["llama", "bert", "t5", "bart"],
)
def test_a_pass_of_every_kind_of_model_is_that_on_noisy_inputs(kind: Any, config: PretrainedConfig) -> None:
    built = build(kind, config)
    ids = torch.arange(3, 13).view(2, 5)
    inputs: dict[str, Any] = {"attention_mask": torch.ones_like(ids)}
    encoder = built
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :3]
        encoder = built.get_encoder()
    values = torch.tensor([20.0, 5.0]), torch.tensor([1, 2]), torch.tensor([5, 5])
    with noisy_embeddings(built, *values):
        found = built(input_ids=ids, **inputs)
    sizes = (values[0] / math.sqrt(5 * FEATURES))[:, None, None]
    embeddings = encoder.get_input_embeddings()(ids) + uniform_noise(values[1], -1, 5, FEATURES) * sizes
    expected = built(inputs_embeds=embeddings, **inputs)
    torch.testing.assert_close(found[0], expected[0])
    assert not torch.allclose(found[0], built(input_ids=ids, **inputs)[0], atol=1e-4)
