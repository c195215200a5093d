"""What a sweep decides about its schedule's champion, from its evaluations. Pure.

Values of different nights are never compared: both adapters are evaluated in the sweep, on its own eval rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from search_spaces.wording import counted
from service.analysis.contest import FEWEST_ROWS, Comparison, SeedNoise, compare
from service.db.kinds import ContestDecision

WINS = frozenset({ContestDecision.CROWNED, ContestDecision.DETHRONED, ContestDecision.SUCCEEDED})
"""Decisions by which the challenger becomes champion."""

CHANGED = "the champion was changed while this sweep ran, so its evaluation says nothing of the present one"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One adapter's in this sweep."""

    trial: int
    """Of the study that made the adapter."""
    study: str
    value: float | None = None
    """The objective; None: the evaluation did not complete."""
    why_not: str = ""
    unusable: bool = False
    """The adapter is gone, or fits no more: no later sweep could evaluate it either."""
    evaluated: Mapping[str, Any] | None = None
    """A `workers.evaluated.Evaluated` as JSON."""
    reign: int | None = None
    """Of a champion."""

    @property
    def name(self) -> str:
        return f"trial {self.trial} of {self.study}"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How champion and challenger stand at a sweep's end."""

    metric: str
    minimize: bool
    candidates: int
    """Completed trials that the challenger was the best of."""
    noise: SeedNoise | None
    seed: int
    ended_early: str | None
    """Why the sweep puts nobody up; None: it may."""
    reign: int | None = None
    """The present champion's; None: there is none."""
    reign_name: str = ""
    misfit: str | None = None
    """Why the present champion cannot be evaluated under this sweep's definition."""
    champion: Evaluation | None = None
    challenger: Evaluation | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The decision, and why."""

    decision: ContestDecision
    why: str
    comparison: Comparison | None = None


def judge(standing: Standing) -> Verdict:
    """What becomes of the throne."""
    challenger, stays = standing.challenger, f"; {standing.reign_name} stays" if standing.reign else ""
    if standing.ended_early is not None or challenger is None:
        why = standing.ended_early or "no trial of the sweep completed within the constraints"
        return Verdict(decision=ContestDecision.UNCHALLENGED, why=f"{why}{stays}")
    if challenger.value is None or challenger.evaluated is None:
        why = f"the sweep's winner, trial {challenger.trial}, could not be evaluated: {challenger.why_not}"
        return Verdict(decision=ContestDecision.UNCHALLENGED, why=f"{why.rstrip('.')}{stays}")
    has = f"{standing.metric} {challenger.value:.4g}"
    if standing.reign is None:
        why = f"{challenger.name} is the first champion: {has}"
        return Verdict(decision=ContestDecision.CROWNED, why=why)
    gone = standing.misfit
    champion = standing.champion
    if champion is not None and champion.reign == standing.reign and champion.unusable:
        gone = champion.why_not.rstrip(".")
    if gone is not None:
        why = f"{challenger.name} ({has}) follows {standing.reign_name}, which cannot be evaluated: {gone}"
        return Verdict(decision=ContestDecision.SUCCEEDED, why=why)
    return _against(standing, challenger, champion)


def _against(standing: Standing, challenger: Evaluation, champion: Evaluation | None) -> Verdict:
    """Of a champion that can be evaluated, as far as is known."""
    defended = ContestDecision.DEFENDED
    stays = f"{standing.reign_name} stays"
    if champion is not None and champion.reign != standing.reign:
        return Verdict(decision=defended, why=f"{stays}: {CHANGED}")
    if champion is None or champion.value is None or champion.evaluated is None:
        why = "it was not evaluated in this sweep" if champion is None else champion.why_not.rstrip(".")
        return Verdict(decision=defended, why=f"{stays}, though its evaluation did not complete: {why}")
    assert challenger.value is not None
    assert challenger.evaluated is not None
    if champion.evaluated["data"] != challenger.evaluated["data"]:
        why = "the eval data was changed in the middle of the sweep, so the two cannot be compared"
        return Verdict(decision=defended, why=f"{stays}: {why}")
    rows = int(champion.evaluated["rows"])
    if rows < FEWEST_ROWS:
        why = f"{counted(rows, 'eval row')} cannot tell them apart; {FEWEST_ROWS} are needed"
        return Verdict(decision=defended, why=f"{stays}: {why}")
    found = compare(
        champion.evaluated,
        challenger.evaluated,
        values=(champion.value, challenger.value),
        metric=standing.metric,
        minimize=standing.minimize,
        candidates=standing.candidates,
        noise=standing.noise,
        seed=standing.seed,
    )
    if found.better:
        why = f"{challenger.name} takes the place of {standing.reign_name}: {found.sentence}"
        return Verdict(decision=ContestDecision.DETHRONED, why=why, comparison=found)
    why = f"{stays}; trial {challenger.trial} has {found.sentence}"
    return Verdict(decision=defended, why=why, comparison=found)
