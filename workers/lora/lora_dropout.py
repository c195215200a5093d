"""Dropout whose masks are counted, not drawn: no generator, so no state to lend, save or restore.

Whether feature j of token t of an example is dropped at one layer in one optimizer step is a hash of
(trial's seed, step, example, t, layer, j) and of nothing else. So a trial's masks are the same alone and
in a pack, in one micro-batch and in eight, padded and not, in a step that is redone, and after a resume.
A backward pass may ask for a mask again in place of keeping it.

How an element is decided, in 32-bit words with wrap-around:

    row word      r = lowbias32(key ^ lowbias32(token))              key: SHA-256 of seed, step and example
    feature word  c = lowbias32(word of the layer ^ lowbias32(j))
    kept          f(r ^ c), as a signed word, >= rate * 2^32 - 2^31;    f(x) = x * (2x + 1)

`lowbias32` is Wellons' finaliser (https://nullprogram.com/blog/2018/07/31/, bias 0.17). Only the last line
is paid for each element. `f` is RC6's quadratic (Rivest, Robshaw, Sidney & Yin 1998, "The RC6 Block
Cipher"): a permutation of the 32-bit words whose high bits, which decide the comparison, depend on all
bits of x; and it is one kernel. What `r ^ c` leaves to be mixed is that the four elements of two rows and
two features cancel: over 2.6e13 such rectangles their correlation was 3e-8 at a rate of 0.05 and 1e-7 at
0.5, below one standard error, as for a full lowbias32 (which costs four kernels more).

What is left to chance: of 4,096 tokens in a pass two share a word, and so their masks, once in 500 passes;
and of two words that differ in nothing but their ten highest bits, one pair in four million, the masks are
correlated.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from workers.device.generators import derive_seed

_WORDS = 2**32
_SIGN = 2**31
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integers that hold the bits of a floating dtype, by its size in bytes."""


def row_keys(seed: int, step: int, positions: Sequence[int]) -> list[int]:
    """One key for each row of a batch: a hash of the trial's seed, the optimizer step and the example.

    Args:
        seed: The recipe's.
        step: The optimizer step that the row's gradient belongs to (the first is step 0).
        positions: Each row's example, by its index in the training data.

    Returns:
        Signed 32-bit integers, so that `torch.tensor(keys, dtype=torch.int32)` holds them.
    """
    purpose = f"lora dropout/{step}"
    return [_signed(derive_seed(seed, purpose, position)) for position in positions]


class RowDropout:
    """The dropout of the B rows of one pass: what all layers have in common, computed once."""

    def __init__(
        self,
        keys: torch.Tensor,
        rates: torch.Tensor,
        tokens: int,
        dtype: torch.dtype,
        places: torch.Tensor | None = None,
    ) -> None:
        """
        Args:
            keys: int32 or int64 [B], from `row_keys`; on the device where the masks are wanted.
            rates: float [B], each row's probability of dropping, 0 to 1; on the same device.
            tokens: T, padding included.
            dtype: A floating dtype, that of the activations.
            places: int64 [B], of rows laid end to end: B counts tokens then, T is 1, and each has its row's
                key and its place in the row; None: rows are below each other.
        """
        self._words = _row_words(keys, tokens) if places is None else _token_words(keys, places)
        rates = rates.double()[:, None, None]
        # Clamped, because a rate of 1 is one past the largest word.
        self._thresholds = (rates * _WORDS - _SIGN).clamp(max=_SIGN - 1).to(torch.int32)
        self._scale_bits = torch.where(rates < 1, 1 / (1 - rates), 0).to(dtype).view(_BITS[dtype.itemsize])
        self._dtype = dtype

    def keep_scale(self, layer: int, features: int) -> torch.Tensor:
        """What to multiply the inputs of one layer with; four kernels.

        Args:
            layer: A number from 0 that is the layer's own and the same in every pass.
            features: d, the width of the layer's input.

        Returns:
            [B, T, d] in the dtype given: 1 / (1 - rate) where kept, 0 where dropped.
        """
        words = self._words ^ _feature_words(layer, features, self._words.device)
        words.addcmul_(words, words, value=2)
        same_size = words.dtype == self._scale_bits.dtype
        kept = words if same_size else torch.empty_like(words, dtype=self._scale_bits.dtype)
        # 1 or 0 times the scale's bits: no conversion to a floating dtype, and none of a bool's slow kernels.
        return torch.ge(words, self._thresholds, out=kept).mul_(self._scale_bits).view(self._dtype)


def keep_scale(
    keys: torch.Tensor, layer: int, tokens: int, features: int, rates: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """`RowDropout.keep_scale` for a single layer: [B, tokens, features]."""
    return RowDropout(keys, rates, tokens, dtype).keep_scale(layer, features)


def uniform_noise(
    keys: torch.Tensor, layer: int, tokens: int, features: int, places: torch.Tensor | None = None
) -> torch.Tensor:
    """Numbers between -1 and 1, each a hash of the same counters as an element's mask.

    Hashed by lowbias32 to the end, so that all the bits that float32 keeps are mixed, not the highest only.

    Args:
        keys: int32 or int64 [B], from `row_keys`; on the device where the noise is wanted.
        layer: A number that no layer with dropout has, such as a negative one.
        tokens: T, padding included.
        features: d
        places: As `RowDropout` takes them.

    Returns:
        float32 [B, T, d].
    """
    rows = _row_words(keys, tokens) if places is None else _token_words(keys, places)
    words = rows ^ _feature_words(layer, features, keys.device)
    return _lowbias32(words).float().mul_(1 / _SIGN)


def _row_words(keys: torch.Tensor, tokens: int) -> torch.Tensor:
    """int32 [B, T, 1]."""
    return _lowbias32(keys.to(torch.int32).unsqueeze(1) ^ _counted(tokens, keys.device)).unsqueeze(2)


def _token_words(keys: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """int32 [N, 1, 1]: the same word that a token of a row has in `_row_words`, by its row's key."""
    counted = _counted(int(places.max()) + 1, keys.device)[0, places]
    return _lowbias32(keys.to(torch.int32) ^ counted)[:, None, None]


def _lowbias32(x: torch.Tensor) -> torch.Tensor:
    """A permutation of the 32-bit words, int32 as torch has no uint32 arithmetic. Changes `x`."""
    x.bitwise_xor_(_shifted(x, 16)).mul_(0x7FEB352D)
    x.bitwise_xor_(_shifted(x, 15)).mul_(_signed(0x846CA68B))
    return x.bitwise_xor_(_shifted(x, 16))


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """A logical shift to the right: torch's own copies the sign in."""
    return (x >> bits).bitwise_and_((1 << (32 - bits)) - 1)


def _signed(word: int) -> int:
    """The int32 with the bits of a word below 2^32."""
    return word - _WORDS if word >= _SIGN else word


def _counted(count: int, device: torch.device) -> torch.Tensor:
    """int32 [1, count]: a word for each of 0, 1, 2, ..."""
    return _count_words(1 << (count - 1).bit_length(), device)[:, :count]


@lru_cache(maxsize=64)  # powers of two only, so few
def _count_words(count: int, device: torch.device) -> torch.Tensor:
    """Hashed from 1 on, because lowbias32 maps 0 to 0."""
    return _lowbias32(torch.arange(1, count + 1, dtype=torch.int32, device=device)).unsqueeze(0)


@lru_cache(maxsize=1024)  # a 70 B model has 560 linear layers; their words take 25 MB
def _feature_words(layer: int, features: int, device: torch.device) -> torch.Tensor:
    """int32 [1, 1, d]."""
    words = _counted(features, device)
    return _lowbias32(words ^ _signed(derive_seed(layer, "lora dropout layer"))).view(1, 1, -1)
