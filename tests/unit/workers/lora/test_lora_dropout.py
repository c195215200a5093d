"""LoRA dropout by counters: right rates, no structure, and nothing but a row's own counters in a mask."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from workers.device.generators import derive_seed
from workers.lora.lora_dropout import RowDropout, keep_scale, row_keys, uniform_noise

RATES = [0.01, 0.05, 0.1, 0.3, 0.5, 0.9, 0.999]
int32s = st.integers(-(2**31), 2**31 - 1)


def masks(
    keys: list[int], layer: int = 0, tokens: int = 64, features: int = 256, rate: float = 0.1
) -> torch.Tensor:
    """Float32 masks [B, T, d] at one rate for all rows: 1 where kept."""
    rates = torch.full((len(keys),), rate)
    scale = keep_scale(torch.tensor(keys), layer, tokens, features, rates, torch.float32)
    return (scale > 0).float()


def standardized(mask: torch.Tensor, rate: float) -> torch.Tensor:
    """Of mean 0 and variance 1 if elements are kept with probability 1 - rate."""
    return (mask.double() - (1 - rate)) / math.sqrt(rate * (1 - rate))


def z_scores(rows: torch.Tensor) -> torch.Tensor:
    """Correlation of each pair of standardized rows, in standard errors."""
    pairs = torch.triu_indices(len(rows), len(rows), offset=1)
    correlations: torch.Tensor = (rows @ rows.T)[pairs[0], pairs[1]] / math.sqrt(rows.shape[1])
    return correlations


def lowbias32(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    x = x ^ (x >> 16)
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> 15)
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


@given(
    keys=st.lists(int32s, min_size=1, max_size=4),
    layer=st.integers(0, 500),
    tokens=st.integers(1, 9),
    features=st.integers(1, 70),
    rate=st.sampled_from(RATES),
)
def test_a_mask_is_the_documented_hash_in_unsigned_arithmetic(
    keys: list[int], layer: int, tokens: int, features: int, rate: float
) -> None:
    count = np.arange(1, max(tokens, features) + 1, dtype=np.uint32)
    key_words = np.array(keys, dtype=np.int32).view(np.uint32)
    layer_word = np.uint32(derive_seed(layer, "lora dropout layer"))
    row = lowbias32(key_words[:, None] ^ lowbias32(count[:tokens]))
    feature = lowbias32(lowbias32(count[:features]) ^ layer_word)
    x = row[:, :, None] ^ feature
    mixed = (x * (np.uint32(2) * x + np.uint32(1))).view(np.int32)
    kept = mixed >= float(np.float32(rate)) * 2**32 - 2**31
    assert masks(keys, layer, tokens, features, rate).bool().tolist() == kept.tolist()


@pytest.mark.parametrize("rate", RATES)
def test_elements_are_dropped_at_their_rate_and_the_rest_is_scaled_up(rate: float) -> None:
    keys = torch.tensor(row_keys(3, 0, range(16)))
    scale = keep_scale(keys, 5, 64, 512, torch.full((16,), rate), torch.float32)
    kept = int((scale > 0).sum())
    n = scale.numel()
    assert abs(kept - n * (1 - rate)) < 4 * math.sqrt(n * rate * (1 - rate))
    assert scale[scale > 0].unique().tolist() == pytest.approx([1 / (1 - rate)], rel=1e-4)
    assert int((scale == 0).sum()) == n - kept


@pytest.mark.parametrize("rate", [0.05, 0.5])
@pytest.mark.parametrize("what", ["rows", "steps", "seeds", "layers", "tokens", "features"])
def test_masks_that_differ_in_one_counter_are_uncorrelated(what: str, rate: float) -> None:
    key = row_keys(0, 0, [0])
    match what:
        case "rows":
            rows = masks(row_keys(0, 0, range(60)), rate=rate).flatten(1)
        case "steps":
            rows = masks([k for step in range(60) for k in row_keys(0, step, [0])], rate=rate).flatten(1)
        case "seeds":
            rows = masks([k for seed in range(60) for k in row_keys(seed, 0, [0])], rate=rate).flatten(1)
        case "layers":
            rows = torch.cat([masks(key, layer, rate=rate).flatten(1) for layer in range(60)])
        case "tokens":
            rows = masks(key, tokens=100, features=4096, rate=rate)[0]
        case _:
            rows = masks(key, tokens=4096, features=100, rate=rate)[0].T
    z = z_scores(standardized(rows, rate))
    # Of n independent pairs the root mean square is 1 within 4 / sqrt(2n), and none is beyond 5.5.
    assert z.square().mean().sqrt().item() == pytest.approx(1.0, abs=4 / math.sqrt(2 * len(z)))
    assert z.abs().max().item() < 5.5


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_two_rows_and_two_features_do_not_cancel(rate: float) -> None:
    """The words of such four elements xor to zero before they are mixed, so here a weak hash would show."""
    tokens, features = 1024, 1024
    z = standardized(masks(row_keys(1, 1, [1]), 2, tokens, features, rate)[0], rate)
    squares = z.square()
    # The sum, over ordered pairs of rows and of features, of the products of the four corners.
    products = (z @ z.T).square() - squares @ squares.T
    total = (products.sum() - products.diagonal().sum()).item()
    rectangles = math.comb(tokens, 2) * math.comb(features, 2)
    assert abs(total / 4) < 4 * math.sqrt(rectangles)


def test_neighbouring_elements_agree_as_often_as_independent_ones() -> None:
    rate = 0.3
    mask = masks(row_keys(2, 0, range(8)), 1, 128, 256, rate)
    expected = rate**2 + (1 - rate) ** 2
    for one, other in [
        (mask[:, :, 1:], mask[:, :, :-1]),
        (mask[:, 1:], mask[:, :-1]),
        (mask[1:], mask[:-1]),
        (mask[:, 1:, 1:], mask[:, :-1, :-1]),
    ]:
        agreement = (one == other).double().mean().item()
        assert agreement == pytest.approx(expected, abs=4 / math.sqrt(one.numel()))


def test_no_two_of_a_thousand_keys_share_a_mask_nor_any_two_tokens_a_row() -> None:
    keys = [key for step in range(100) for key in row_keys(7, step, range(10))]
    rows = masks(keys, tokens=8, features=128, rate=0.5).flatten(0, 1).to(torch.uint8).numpy()
    assert len({row.tobytes() for row in rows}) == 8000


@given(
    keys=st.lists(int32s, min_size=2, max_size=6, unique=True),
    rates=st.lists(st.sampled_from([0.0, *RATES]), min_size=6, max_size=6),
    tokens=st.integers(1, 20),
    padding=st.integers(0, 20),
    features=st.integers(1, 40),
    data=st.data(),
)
def test_a_row_depends_on_neither_its_neighbours_nor_their_order_nor_padding(
    keys: list[int], rates: list[float], tokens: int, padding: int, features: int, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(keys))))
    together = keep_scale(
        torch.tensor([keys[i] for i in order]),
        3,
        tokens + padding,
        features,
        torch.tensor([rates[i] for i in order]),
        torch.float32,
    )
    for place, i in enumerate(order):
        alone = keep_scale(
            torch.tensor([keys[i]]), 3, tokens, features, torch.tensor([rates[i]]), torch.float32
        )
        assert torch.equal(together[place, :tokens], alone[0])


def test_a_wider_layer_begins_with_the_masks_of_a_narrower_one() -> None:
    assert torch.equal(masks([5], features=300)[:, :, :100], masks([5], features=100))


def test_rows_of_rate_zero_are_kept_exactly_beside_others() -> None:
    scale = keep_scale(torch.tensor([1, 2, 3]), 0, 16, 64, torch.tensor([0.0, 0.9, 0.0]), torch.float32)
    assert torch.equal(scale[[0, 2]], torch.ones(2, 16, 64))
    assert (scale[1] == 0).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_all_floating_dtypes_give_the_same_mask(dtype: torch.dtype) -> None:
    keys, rates = torch.tensor([1, 2]), torch.tensor([0.2, 0.5])
    scale = keep_scale(keys, 0, 16, 64, rates, dtype)
    reference = keep_scale(keys, 0, 16, 64, rates, torch.float32)
    assert scale.dtype == dtype
    assert torch.equal(scale > 0, reference > 0)
    torch.testing.assert_close(scale, reference.to(dtype), rtol=1e-6, atol=0)


def test_rates_up_to_one_neither_overflow_nor_give_anything_not_finite() -> None:
    largest = float(np.nextafter(np.float32(1), np.float32(0)))
    rates = torch.tensor([1 - 1e-6, largest, 1.0])
    scale = keep_scale(torch.tensor([1, 2, 3]), 0, 64, 1024, rates, torch.float32)
    assert scale.isfinite().all()
    assert (scale > 0).float().mean(dim=(1, 2)).tolist() == pytest.approx([0, 0, 0], abs=1e-4)
    assert torch.equal(scale[2], torch.zeros(64, 1024))


@given(keys=st.lists(int32s, min_size=1, max_size=3))
def test_key_dtypes_and_repeated_calls_change_nothing(keys: list[int]) -> None:
    rates = torch.full((len(keys),), 0.4)
    prepared = RowDropout(torch.tensor(keys, dtype=torch.int32), rates, 7, torch.float32)
    expected = keep_scale(torch.tensor(keys, dtype=torch.int64), 4, 7, 33, rates, torch.float32)
    first = prepared.keep_scale(4, 33)
    assert torch.equal(first, expected)
    first.zero_()
    prepared.keep_scale(9, 12)
    assert torch.equal(prepared.keep_scale(4, 33), expected)


def test_no_generator_is_drawn_from() -> None:
    state = torch.get_rng_state()
    masks(row_keys(0, 0, range(3)))
    assert torch.equal(torch.get_rng_state(), state)


def test_keys_differ_by_seed_step_and_example_and_fit_an_int32() -> None:
    keys = [
        key
        for seed, step in itertools.product((0, 1, 2**31), range(100))
        for key in row_keys(seed, step, range(10))
    ]
    assert len(set(keys)) == 3000
    assert torch.tensor(keys, dtype=torch.int32).tolist() == keys
    assert min(keys) < 0 < max(keys)


@given(positions=st.lists(st.integers(0, 10**6), max_size=5))
def test_a_key_depends_on_its_own_example_only(positions: list[int]) -> None:
    assert row_keys(1, 2, positions) == [row_keys(1, 2, [position])[0] for position in positions]


def test_tokens_of_rows_laid_end_to_end_have_the_masks_and_noise_of_padded_ones() -> None:
    lengths, keys = (5, 1, 7), torch.tensor(row_keys(3, 8, [4, 0, 9]))
    rates = torch.tensor([0.3, 0.0, 0.6])
    places = torch.cat([torch.arange(length) for length in lengths])
    real = torch.arange(7) < torch.tensor(lengths)[:, None]
    counts = torch.tensor(lengths)
    laid = RowDropout(
        keys.repeat_interleave(counts), rates.repeat_interleave(counts), 1, torch.float32, places
    )
    expected = RowDropout(keys, rates, 7, torch.float32).keep_scale(2, 33)[real]
    assert torch.equal(laid.keep_scale(2, 33)[:, 0], expected)
    noise = uniform_noise(keys.repeat_interleave(counts), -1, 1, 33, places)
    assert torch.equal(noise[:, 0], uniform_noise(keys, -1, 7, 33)[real])
