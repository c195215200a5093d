"""The service's only door to Optuna: its storage, and the asks, reports and tells of the coordinator.

The coordinator alone asks and tells. Everybody else, the REST process and the dashboard, only reads.
Optuna's steps are rungs: nominal training examples.

storage         opening, checking, closing; the tables
fences          who may write to a study: the holder of its newest lease
trial_numbers   a trial has the number that it was drawn for
studies         Optuna studies and what is in them
asking          trials from the sampler
reporting       rungs, and the pruner's word on them
telling         how trials ended

The names below are those that the coordinator uses; everybody else imports from the modules.
"""

from __future__ import annotations

from search_spaces.errors import SearchSpaceExhausted
from service.optuna_store.asking import (
    ask,
    ask_repeat,
    complete_ask,
    conditions,
    drop_stray,
    unfinished_asks,
)
from service.optuna_store.fences import fenced, raise_fence
from service.optuna_store.reporting import report, should_prune
from service.optuna_store.storage import (
    Storage,
    StorageInternalError,
    close_storage,
    open_storage,
    ping,
    remove_session,
)
from service.optuna_store.studies import (
    ensure_study,
    find_study_number,
    load_study,
    read_summary,
    read_trials,
)
from service.optuna_store.telling import OUTCOME_ATTR, tell

__all__ = [
    "OUTCOME_ATTR",
    "SearchSpaceExhausted",
    "Storage",
    "StorageInternalError",
    "ask",
    "ask_repeat",
    "close_storage",
    "complete_ask",
    "conditions",
    "drop_stray",
    "ensure_study",
    "fenced",
    "find_study_number",
    "load_study",
    "open_storage",
    "ping",
    "raise_fence",
    "read_summary",
    "read_trials",
    "remove_session",
    "report",
    "should_prune",
    "tell",
    "unfinished_asks",
]
