"""The state of a study in the words that the live table, lines, pages and reports share. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from service.states import TRAINING, StudyState
from service.studies.schemas import ListedStudy, StudyView
from service.trials.schemas import TrialView

ENDED_STATES = ("completed", "pruned", "diverged", "out_of_memory", "failed", "cancelled")


@dataclass(frozen=True, kw_only=True)
class StudySnapshot:
    """A study and its trials at one moment."""

    study: StudyView
    trials: Sequence[TrialView]

    @property
    def ended(self) -> bool:
        return self.study.ended


def counts_line(study: ListedStudy) -> str:
    """How many trials are in each state, in words, without the states that no trial is in."""
    counts = study.counts.model_dump()
    parts = [f"{counts[state]} {state.replace('_', ' ')}" for state in ("running", "waiting", *ENDED_STATES)]
    return ", ".join(part for part in parts if not part.startswith("0 ")) or "no trials yet"


def elapsed(study: StudyView, now: datetime) -> float:
    """Seconds since the study started, until it ended or was paused; 0 before it starts."""
    if study.started_at is None:
        return 0.0
    return max(0.0, ((study.ended_at or study.paused_at or now) - study.started_at).total_seconds())


def standstill(study: StudyView) -> str:
    """Why the study is not training, and what to do about it; empty if it is."""
    if study.ended:
        return ""
    if study.state == StudyState.PAUSED:
        return f"resume it with: nightsweep resume {study.name}"
    return "it is being paused: its trials are writing checkpoints" if study.pause_requested else ""


def waits_for(study: StudyView) -> str:
    """What an active study waits for; empty if it is training or paused."""
    active = study.state in (StudyState.QUEUED, StudyState.RUNNING)
    return study.reason if active and study.reason != TRAINING else ""


def best_trial(snapshot: StudySnapshot) -> TrialView | None:
    best = snapshot.study.best
    if best is None:
        return None
    return next((trial for trial in snapshot.trials if trial.number == best.trial_number), None)


def best_first(study: StudyView, trials: Iterable[TrialView]) -> list[TrialView]:
    """The search's completed trials that break no constraint, the best first; no repeats or evaluations."""
    ranked = [(t.value, t) for t in trials if t.value is not None and t.feasible and t.searched]
    # Sorting is stable, also when reversed: equal ones stay in the order of their numbers.
    return [trial for _, trial in sorted(ranked, key=lambda pair: pair[0], reverse=study.maximizes)]
