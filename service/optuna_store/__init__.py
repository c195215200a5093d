"""The service's only door to Optuna: its storage, and the asks, reports and tells of the coordinator.

The coordinator alone asks and tells. Everybody else, the REST process and the dashboard, only reads.
Optuna's steps are rungs: nominal training examples.

storage         opening, checking, closing; the tables
fences          who may write to a study: the holder of its newest lease
held_trials     what the holder of a study's lease has read of its trials
trial_numbers   a trial has the number that it was drawn for
studies         Optuna studies and what is in them
asking          trials from the sampler
reporting       rungs, and the pruner's word on them
telling         how trials ended

What the coordinator asks, reports and tells is called by the package's name, so that a test can replace it;
everything else is imported from the modules.
"""

from __future__ import annotations

from service.optuna_store.asking import ask, ask_evaluation, ask_repeat, complete_ask
from service.optuna_store.reporting import report, should_prune
from service.optuna_store.telling import tell

__all__ = ["ask", "ask_evaluation", "ask_repeat", "complete_ask", "report", "should_prune", "tell"]
