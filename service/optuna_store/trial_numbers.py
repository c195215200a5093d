"""A trial gets the number that it was drawn for, or it is not created.

Optuna's storage tries a creation again when the connection broke while it waited for the commit's answer,
up to five times (optuna 5.0). If the database had committed, the second try would create a second trial
with the same parameters, and every later one would have a number that it would not have had otherwise, and
so other parameters. Looked at in the transaction of the creation itself, a second try finds its number
taken, and the asker finds the first one's trial.
"""

from __future__ import annotations

import json

from sqlalchemy import column, event, select, table
from sqlalchemy.orm import Session, sessionmaker

from search_spaces.errors import TrialNumberTaken
from search_spaces.sampling.history import DRAWN_FOR_KEY

_TRIALS = table("trials", column("trial_id"), column("number"))
_ATTRIBUTES = table("trial_system_attributes", column("trial_id"), column("key"), column("value_json"))
_MADE = "nightsweep_made"


def listen(sessions: sessionmaker[Session]) -> None:
    """Have the sessions' transactions refuse to commit a trial with another number than it was drawn for.

    They raise `TrialNumberTaken`.
    """
    event.listen(sessions, "after_flush", _remember)
    event.listen(sessions, "before_commit", _look)
    event.listen(sessions, "after_soft_rollback", lambda session, _: session.info.pop(_MADE, None))


def _remember(session: Session, _context: object) -> None:
    made = [new.trial_id for new in session.new if new.__tablename__ == _TRIALS.name]
    session.info.setdefault(_MADE, []).extend(made)


def _look(session: Session) -> None:
    session.flush()
    made = session.info.pop(_MADE, [])
    if not made:
        return
    query = (
        select(_TRIALS.c.number, _ATTRIBUTES.c.value_json)
        .join_from(_TRIALS, _ATTRIBUTES, _TRIALS.c.trial_id == _ATTRIBUTES.c.trial_id)
        .where(_TRIALS.c.trial_id.in_(made), _ATTRIBUTES.c.key == DRAWN_FOR_KEY)
    )
    for number, drawn_for in session.execute(query):
        if number != json.loads(drawn_for):
            raise TrialNumberTaken(f"a trial that was drawn for number {drawn_for} would get {number}")
