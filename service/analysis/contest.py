"""Is a sweep's winner better than the champion beyond the noise? A paired test over eval rows. Pure, seeded.

Both adapters were evaluated on the same rows in the same night. Rows are drawn with replacement, the same
ones for both, and the metric of each is computed anew (the paired bootstrap: Efron and Tibshirani 1993; for
language tasks Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation"). The share of
draws in which the challenger is not ahead is the p value of one side.

The challenger was chosen on these very rows as the best of many trials, so some of its lead is luck with them
(the winner's curse). So p must be below 0.05 divided by the trials it was chosen from (Bonferroni), by which
at most one night in twenty dethrones an equal.

Rows say nothing of seeds. Where the study's repeats have measured how much the objective moves from seed to
seed, the lead must also exceed what two runs of one recipe would differ by: t times that deviation times the
root of 2, at one side of 0.05.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from search_spaces.wording import counted
from service.analysis.row_statistics import Array, statistic
from service.analysis.winner import Candidate

ALPHA = 0.05
"""Of nights in which an equal challenger would be taken for a better one, at most."""
FEWEST_ROWS = 20
"""With fewer rows no draws say how the metric varies."""
DRAWS = 10_000
FEWEST_BEHIND = 10
"""Draws in which the challenger is not ahead, with fewer of which their share says little: the tail of a t
distribution as wide as the draws takes its place."""
_AT_ONCE = 500


@dataclass(frozen=True, kw_only=True)
class SeedNoise:
    """How much the objective moves from seed to seed, by a study's repeats."""

    deviation: float
    """Standard deviation within a recipe, pooled over recipes."""
    freedom: int
    """Degrees of freedom it rests on."""

    @property
    def needed(self) -> float:
        """A lead that two runs of one recipe have by luck in one of twenty pairs."""
        from scipy import stats  # takes a second

        return float(stats.t.isf(ALPHA, self.freedom)) * self.deviation * math.sqrt(2.0)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a paired comparison came to. Leads are positive where the challenger is better."""

    metric: str
    champion: float
    challenger: float
    rows: int
    decided_by: Literal["metric", "eval_loss"]
    """What was drawn again: the metric itself, or in its place the loss, where sums do not lead to it."""
    lead: float
    """Of the challenger, in what `decided_by` names."""
    low: float
    """Lower end of the 95 % interval of the lead."""
    high: float
    p_value: float
    alpha: float
    candidates: int
    seed_noise: float | None
    """A lead must exceed it; None: the study has no repeats that say."""
    better: bool
    sentence: str

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def seed_noise(candidates: Sequence[Candidate]) -> SeedNoise | None:
    """What repeats say of the luck of seeds; None: no recipe has two completed runs with fresh seeds."""
    runs = [candidate.values for candidate in candidates if candidate.n > 1]
    freedom = sum(len(values) - 1 for values in runs)
    if not freedom:
        return None
    squares = sum(float(np.var(values, ddof=1)) * (len(values) - 1) for values in runs)
    return SeedNoise(deviation=math.sqrt(squares / freedom), freedom=freedom)


def compare(
    champion: Mapping[str, Any],
    challenger: Mapping[str, Any],
    *,
    values: tuple[float, float],
    metric: str,
    minimize: bool,
    candidates: int,
    noise: SeedNoise | None,
    seed: int,
) -> Comparison:
    """Whether the challenger is better beyond the noise.

    Args:
        champion: a `workers.evaluated.Evaluated` as JSON.
        challenger: likewise, of the same rows in the same order.
        values: the objective of both.
        metric: the objective's.
        minimize: whether less is better.
        candidates: completed trials that the challenger was the best of, at least 1.
        noise: of seeds, where it is known.
        seed: of the draws.
    """
    name = champion["statistic"]
    by_metric = name is not None
    key, sign = ("objective", -1.0 if minimize else 1.0) if by_metric else ("loss", -1.0)
    pair = np.asarray(champion[key], dtype=np.float64), np.asarray(challenger[key], dtype=np.float64)
    whole = [float(statistic(name or "ratio", sums.sum(axis=0))) for sums in pair]
    lead = sign * (whole[1] - whole[0])
    leads = _draws(pair, name or "ratio", sign, seed)
    p_value = _p_value(leads, lead, len(pair[0]))
    low, high = (float(end) for end in np.quantile(leads, [0.025, 0.975]))
    alpha = ALPHA / max(1, candidates)
    ahead = (values[1] < values[0]) if minimize else (values[1] > values[0])
    needed = None if noise is None or not by_metric else noise.needed
    better = ahead and p_value < alpha and (needed is None or lead > needed)
    found: dict[str, Any] = {
        "metric": metric,
        "champion": values[0],
        "challenger": values[1],
        "rows": int(champion["rows"]),
        "decided_by": "metric" if by_metric else "eval_loss",
        "lead": lead,
        "low": low,
        "high": high,
        "p_value": p_value,
        "alpha": alpha,
        "candidates": candidates,
        "seed_noise": needed,
        "better": better,
    }
    return Comparison(**found, sentence=_sentence(**found))


def _draws(pair: tuple[Array, Array], name: str, sign: float, seed: int) -> Array:
    """The challenger's lead in each draw of rows, float64 [DRAWS]."""
    generator = np.random.default_rng(seed)
    rows, width = pair[0].shape
    both = np.concatenate(pair, axis=1)
    shares = np.full(rows, 1.0 / rows)
    found = []
    for first in range(0, DRAWS, _AT_ONCE):
        times = generator.multinomial(rows, shares, size=min(_AT_ONCE, DRAWS - first))
        sums = times.astype(np.float64) @ both
        found.append(sign * (statistic(name, sums[:, width:]) - statistic(name, sums[:, :width])))
    return np.concatenate(found)


def _p_value(leads: Array, lead: float, rows: int) -> float:
    behind = int((leads <= 0).sum())
    if behind >= FEWEST_BEHIND:
        return (behind + 1) / (DRAWS + 1)
    from scipy import stats  # takes a second

    spread = float(leads.std())
    if spread == 0.0:
        return 0.0 if lead > 0 else 1.0
    return float(stats.t.sf(lead / spread, rows - 1))


def _sentence(
    *,
    metric: str,
    champion: float,
    challenger: float,
    rows: int,
    decided_by: str,
    lead: float,
    low: float,
    high: float,
    p_value: float,
    alpha: float,
    candidates: int,
    seed_noise: float | None,
    better: bool,
) -> str:
    how = "better" if lead > 0 else "worse" if lead < 0 else "no different"
    said = f"{metric} {challenger:.4g} instead of {champion:.4g} on {counted(rows, 'row')}: "
    if decided_by != "metric":
        said += f"{metric} cannot be computed of some of the rows, so eval_loss decides beside it: "
    said += how + (f" by {abs(lead):.2g}" if lead else "")
    low, high = (-high, -low) if lead < 0 else (low, high)
    said += f" (95 % interval {low:.2g} to {high:.2g})"
    if lead > 0:
        said += (
            f", {'p < 0.0001' if p_value < 0.0001 else f'p = {p_value:.2g}'}, which must be below {alpha:.2g}"
        )
        said += f" since it was chosen from {counted(candidates, 'trial')}" if candidates > 1 else ""
    if seed_noise is not None:
        said += f"; seeds alone move it by {seed_noise:.2g}"
    if not better and decided_by != "metric" and p_value < alpha:
        said += f"; {metric} is not better"
    return said
