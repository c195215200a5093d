"""The diagnosis of a study's trials, kept up to date as they end. Pure.

A verdict may rest on another trial that did better with a gentler recipe (`diagnosis.Peers`). So one that
ends can change what is said of trials that ended before it: of those that last reported at one of its rungs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from service.analysis.curves import Curve
from service.analysis.diagnosis import Finding, Force, Peers, diagnose
from service.states import AttemptState

_COMPARED = (AttemptState.COMPLETED, AttemptState.PRUNED)
"""Only trials that ended so are compared with, so that a verdict does not change from look to look."""


class RunningDiagnosis:
    """What is said of each trial that has ended.

    Args:
        curves: of those that have ended so far.
    """

    def __init__(self, curves: Iterable[Curve] = ()) -> None:
        curves = list(curves)
        self._peers = Peers(curve for curve in curves if curve.state in _COMPARED)
        self._last_at: dict[int, dict[int, tuple[Curve, Force]]] = {}
        """Rung -> the trials whose last one it is."""
        self._gentler: dict[int, tuple[float, int]] = {}
        """Trial -> the gentler one's loss and number."""
        self._findings: dict[int, list[Finding]] = {}
        for curve in curves:
            self._judge(curve)

    @property
    def findings(self) -> Mapping[int, list[Finding]]:
        """Trial -> the verdicts on it."""
        return self._findings

    def add(self, curve: Curve) -> dict[int, list[Finding]]:
        """One more trial has ended: the trials of which something new is to be said, and what."""
        before = dict(self._findings)
        judged = {curve.number: curve}
        if curve.state in _COMPARED and curve.recipe is not None:
            own = Force.of(curve.recipe)
            losses = {rung.examples: rung.eval_loss for rung in curve.rungs}
            for rung, dropped in self._peers.add(curve).items():
                for number, (other, force) in self._last_at.get(rung, {}).items():
                    present = self._gentler.get(number)
                    lost = present is not None and present[1] == dropped
                    better = present is None or (losses[rung], curve.number) < present
                    if lost or (better and own.gentler_than(force)):
                        judged[number] = other
        for each in judged.values():
            self._judge(each)
        return {n: self._findings[n] for n in judged if before.get(n) != self._findings[n]}

    def _judge(self, curve: Curve) -> None:
        self._findings[curve.number] = diagnose(curve, self._peers)
        if curve.state in _COMPARED and curve.recipe is not None and curve.rungs:
            at = self._last_at.setdefault(curve.rungs[-1].examples, {})
            at[curve.number] = curve, Force.of(curve.recipe)
            gentler = self._peers.gentler(curve)
            self._gentler.pop(curve.number, None)
            if gentler is not None:
                self._gentler[curve.number] = gentler[0], gentler[1].number
