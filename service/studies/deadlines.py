"""The deadline of a study, from `budget.until`: when it is, and the reason that is given then. Pure."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from search_spaces.definition import BudgetSpec
from search_spaces.values.time_of_day import next_time_of_day, parse_time_of_day
from service.db.models import Study


def deadline(study: Study, budget: BudgetSpec) -> datetime | None:
    """The first such time of day after the study was taken up, or resumed; None: it has none (yet).

    Of a sweep whose schedule gives it a window, the first after its firing, or after it was resumed.
    """
    begun = study.window_from or study.started_at
    if budget.until is None or begun is None:
        return None
    anchor = begun if study.resumed_at is None else max(begun, study.resumed_at)
    return next_time_of_day(anchor, parse_time_of_day(budget.until), budget.until_timezone)


def deadline_reached(study: Study, budget: BudgetSpec, now: datetime) -> str | None:
    """Why it should be paused or ended now, with the local time; None: its deadline has not come.

    Args:
        study: its row.
        budget: of its definition.
        now: by the database's clock.
    """
    at = deadline(study, budget)
    if at is None or now < at:
        return None
    local = at.astimezone(ZoneInfo(budget.until_timezone))
    return f"budget.until {budget.until} {budget.until_timezone} reached ({local:%Y-%m-%d %H:%M %Z})"
