"""Why an attempt does not go on where the trial's earlier ones left off, in words. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from search_spaces.values.artifact_urls import without_password
from search_spaces.wording import counted
from service.coordinator.cluster.orders import checkpoint_of
from service.db.models import Attempt
from service.states import AttemptState
from workers.contract import TrialStarted, UnusableCheckpoint

UNUSABLE = "checkpoint_unusable"
"""The kind of event that says why a checkpoint, or every one, could not be gone on from."""

_MOST_NAMED = 3
"""Attempts whose checkpoints are spoken of one by one."""


def why_anew(
    event: TrialStarted, attempt: Attempt, earlier: Sequence[Attempt], *, first_rung: int | None
) -> str | None:
    """What to say of the checkpoints that an attempt could not use; None: nothing is lost by it.

    Args:
        event: the attempt's beginning, with what its worker found.
        attempt: its row.
        earlier: the trial's attempts before it, oldest first.
        first_rung: training examples after which a trial writes its first checkpoint; None: not known.
    """
    waited = attempt.state == AttemptState.RUNNING  # it began before, and had to wait for a free slot
    sources = [*earlier, *([attempt] if waited else [])]
    if not sources:
        return None
    found = {passed.folder: passed for passed in event.passed_over}
    newest_first = list(reversed(sources))
    if event.resumed_at_examples > 0:
        damaged = [a for a in newest_first if (p := found.get(checkpoint_of(a))) and not p.missing]
        if not damaged:
            return None  # a later attempt than the one whose checkpoint this is had written none of its own
        begins = (
            f"attempt {attempt.ordinal} goes on from an older checkpoint, since a newer one cannot be used"
        )
        newest_first = damaged
    else:
        begins = f"attempt {attempt.ordinal} begins again at 0 examples, since no checkpoint can be used"
    said = [_of(a, found.get(checkpoint_of(a)), first_rung) for a in newest_first[:_MOST_NAMED]]
    if (more := len(newest_first) - _MOST_NAMED) > 0:
        said.append(f"the checkpoints of {counted(more, 'earlier attempt')} could not be used either")
    return f"{begins}: {'; '.join(said)}"


def _of(attempt: Attempt, passed: UnusableCheckpoint | None, first_rung: int | None) -> str:
    """What became of one attempt's checkpoint."""
    name = f"attempt {attempt.ordinal}"
    if passed is None:
        return f"{name} left a checkpoint that its worker did not mention"
    if not passed.missing:
        return f"{name}: {passed.reason}"
    if attempt.started_at is None:
        return f"{name} never began to train"
    ended = "was paused" if attempt.state == AttemptState.PAUSED else "was lost"
    if attempt.state == AttemptState.RUNNING:
        ended = "waited for a free slot"
    if attempt.last_rung > 0 or attempt.state in (AttemptState.PAUSED, AttemptState.RUNNING):
        where = without_password(passed.folder)
        return f"{name} {ended} at {attempt.examples_seen:,} examples, but there is no checkpoint in {where}"
    if attempt.resumed_at_examples > 0:
        return f"{name} {ended} before it wrote a checkpoint of its own"
    where = "" if first_rung is None else f" at {first_rung:,} examples"
    return f"{name} {ended} after {attempt.examples_seen:,} examples, before its first checkpoint{where}"
