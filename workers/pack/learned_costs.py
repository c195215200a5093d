"""What passes on a base cost, learnt from the passes that train: nothing is ever run to be measured.

Until enough of them have been seen, costs are those that an earlier worker learnt of such passes, or an
assumption that is safe for memory and modest in trials. Either fades as passes are made, so what has become
wrong heals by itself.
"""

from __future__ import annotations

import statistics
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.optimize import nnls

from workers.base.base_model import LoadedBase
from workers.base.chunked_loss import chunk_bytes
from workers.base.target_modules import linear_layers
from workers.contract import PassCosts
from workers.device.memory import allocated_bytes, tokens_per_forward
from workers.device.meter import PassSample
from workers.pack.cost_model import MemoryCost, PassCost, fit_pass_cost
from workers.training.objectives.forward import chunk_tokens

FEW_PASSES = 4
"""From so many on, what passes took says more than an assumption."""

_BINS_AN_OCTAVE = 4
"""Passes whose tokens differ by less than a fifth count as of one size."""
_MOST_BINS = 64
_NEWEST = 5
"""Passes of one size that are kept: their median is not moved by two that were held up."""
_HALF_LIFE = 256
"""Passes after which what one size took counts half, unless such a pass is made again."""
_FADING = 16
"""Passes after which what was known before counts half."""
_SAFE = 3.0
"""By how much more than the inputs and outputs of its linear layers a base may keep of a token. Measured on a
CPU, in float32, all that a pass takes is 1.6 to 2.1 times as much; four architectures keep 1.0 to 1.4."""
_LOGITS = 6.0
"""Copies of its logits that a base may make of a token where they are not made in chunks, two of them in
float32."""
_PEAKS = 8
"""Largest passes whose peaks are remembered."""


@dataclass(frozen=True)
class Costs:
    """What the cost model goes by."""

    time: PassCost
    memory: MemoryCost
    timed: bool = True
    """Whether the seconds were ever measured, here or by an earlier worker; else only their ratios count."""
    weighed: bool = True
    """Whether the bytes were; else they are more than a pass can take."""


@dataclass
class _Size:
    """Passes of about one size."""

    passes: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_NEWEST))
    """Tokens and seconds, newest last."""
    last: int = 0
    """Number of the newest."""

    def sample(self, trials: int) -> tuple[float, int, float]:
        """Padded tokens, trials and seconds of a typical one."""
        tokens = statistics.fmean(tokens for tokens, _ in self.passes)
        return tokens, trials, tokens * statistics.median(seconds / n for n, seconds in self.passes)


class LearnedCosts:
    """Learns from passes on one base; bounded in memory, however many there are.

    Attributes:
        key: What orders with such passes have in common.
        passes: How many there were.
    """

    def __init__(self, base: LoadedBase, key: str | None = None, known: Sequence[PassCosts] = ()) -> None:
        """
        Args:
            base: Without adapters: what is allocated now is taken for what it always is.
            key: As `TrialOrder.cost_key`.
            known: What earlier workers learnt under this key, on whatever device.
        """
        self.key = key
        self.passes = 0
        self._base = base
        self._setting = _setting(base.device)
        self._known = next((c for c in known if (c.form, c.device, c.threads) == self._setting), None)
        self._base_bytes = allocated_bytes(base.device)
        self._sizes: OrderedDict[tuple[int, int], _Size] = OrderedDict()
        self._peaks: dict[int, int] = {}
        self._most_per_token = _most_per_token(base)

    def learn(self, sample: PassSample, *, adapter_bytes: int) -> None:
        """Takes in a pass.

        Args:
            sample: Of it.
            adapter_bytes: Of the trials that were on the base.
        """
        self.passes += 1
        key = (round(_BINS_AN_OCTAVE * np.log2(sample.tokens)), sample.trials)
        size = self._sizes.setdefault(key, _Size())
        size.passes.append((sample.tokens, sample.seconds))
        size.last = self.passes
        self._sizes.move_to_end(key)
        if len(self._sizes) > _MOST_BINS:
            self._sizes.popitem(last=False)
        if sample.peak_bytes is not None:
            fixed = self._base_bytes + adapter_bytes + self._chunk_bytes(sample.tokens)
            self._peaks[sample.tokens] = max(1, sample.peak_bytes - fixed)
            for tokens in sorted(self._peaks)[:-_PEAKS]:
                del self._peaks[tokens]

    def present(self) -> Costs:
        """What is known now, or assumed."""
        known = self._known is not None and self._known.bytes_per_token is not None
        return Costs(
            time=self._time(),
            memory=self._memory(),
            timed=self._known is not None or self.passes >= FEW_PASSES,
            weighed=known or self._has_weighed,
        )

    @property
    def _has_weighed(self) -> bool:
        """Whether its own passes tell their bytes. The first ones may take what was freed before them."""
        return bool(self._peaks) and self.passes >= FEW_PASSES

    def to_keep(self, key: str) -> PassCosts:
        """What another worker can begin with, under a key."""
        costs = self.present()
        form, device, threads = self._setting
        per_token = costs.memory.bytes_per_token
        if self._has_weighed:  # with its part of what the largest pass takes whatever it holds
            per_token += (costs.memory.base_bytes - self._base_bytes) / max(self._peaks)
        return PassCosts(
            key=key,
            form=form,
            device=device,
            threads=threads,
            fixed_s=costs.time.fixed_s,
            per_token_s=costs.time.per_token_s,
            per_trial_s=costs.time.per_trial_s,
            bytes_per_token=per_token if costs.weighed else None,
            passes=self.passes,
        )

    def _time(self) -> PassCost:
        own = [size.sample(trials) for (_, trials), size in self._sizes.items()]
        before = self._before(own)
        if not own:
            return before
        weights = [
            len(size.passes) / _NEWEST * 0.5 ** ((self.passes - size.last) / _HALF_LIFE)
            for size in self._sizes.values()
        ]
        fading = 0.25 * max(0.5 ** (self.passes / _FADING), 2**-16)
        points = [(tokens, trials) for tokens in (64, 256, 1_024) for trials in (1, 4)]
        earlier = [(tokens, trials, before.seconds(tokens, trials)) for tokens, trials in points]
        return fit_pass_cost([*own, *earlier], [*weights, *[fading] * len(earlier)])

    def _before(self, own: Sequence[tuple[float, int, float]]) -> PassCost:
        """What is known without these passes, or assumed: in ratios to a token's if there are none."""
        if self._known is not None:
            return PassCost(self._known.fixed_s, self._known.per_token_s, self._known.per_trial_s)
        # A pass of half the tokens that saturate a device is nearly as fast as any: as `cost_model` has it,
        # it is then about 20 times as long as what it takes before its first.
        overhead = tokens_per_forward(self._base.device) / 32
        assumed = PassCost(overhead, 1.0, overhead / 16)
        if not own:
            return assumed
        token = statistics.median(
            seconds / assumed.seconds(round(tokens), trials) for tokens, trials, seconds in own
        )
        return PassCost(assumed.fixed_s * token, token, assumed.per_trial_s * token)

    def _memory(self) -> MemoryCost:
        fixed, per_token = 0.0, self._most_per_token
        if self._has_weighed:
            fixed, per_token = _line(self._peaks)
        elif self._known is not None and self._known.bytes_per_token is not None:
            per_token = self._known.bytes_per_token
        most = self._chunk_bytes(tokens_per_forward(self._base.device))
        return MemoryCost(self._base_bytes + round(fixed), per_token, most)

    def _chunk_bytes(self, tokens: int) -> int:
        return chunk_bytes(min(chunk_tokens(self._base), tokens), self._base.vocabulary_size)


def _setting(device: torch.device) -> tuple[str, str, int]:
    """Form, device and threads of `PassCosts`."""
    if device.type == "cuda":
        return "chosen", torch.cuda.get_device_name(device), 0
    return "looped", device.type, torch.get_num_threads()


def _most_per_token(base: LoadedBase) -> float:
    """Bytes that a pass surely does not take for a token, whatever its adapters are."""
    numbers = _SAFE * _linear_sides(base)
    if not base.head_is_plain and not base.heads:
        numbers += _LOGITS * base.vocabulary_size
    return numbers * base.compute_dtype.itemsize


def _linear_sides(base: LoadedBase) -> int:
    """Numbers that go into and come out of all the linear layers, for one token."""
    modules = [base.model.get_submodule(path) for path in linear_layers(base.model)]
    # A quantized weight may be packed into another shape; the layer knows its own. A Conv1D has its weight's.
    return sum(
        module.in_features + module.out_features
        if isinstance(module, torch.nn.Linear)
        else sum(module.weight.shape)
        for module in modules
    )


def _line(peaks: dict[int, int]) -> tuple[float, float]:
    """Bytes before the first token and of each, neither negative; of one size all are the tokens'."""
    tokens = np.array(list(peaks), dtype=float)
    extra = np.array(list(peaks.values()), dtype=float)
    columns = np.stack((tokens / tokens.max(), np.full_like(tokens, 1.0 - 1e-9)), axis=1)
    (slope, fixed), _residual = nnls(columns, extra)
    return float(fixed), max(1.0, float(slope / tokens.max()))
