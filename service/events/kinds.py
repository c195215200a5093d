"""The kinds of events, each with its sentence. `docs/reference/events.md` has the same table.

Kinds are no enum in the database: an older version shows what a newer one wrote. A kind that a service
writes and that is missing here fails a test.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticKnownError

from service.db.kinds import ScheduleEventKind
from service.states import TERMINAL_STUDY_STATES, StudyState

SCHEDULE = "schedule_"
"""What the kinds of schedules' events begin with, which their table does not have."""

_STUDIES = {
    "study_queued": "The study was submitted or resumed, and waits for its turn.",
    "study_running": "A coordinator has started it.",
    "study_paused": "It is paused, and its workers have been released.",
    "study_completed": "It has ended as planned.",
    "study_failed": "It has ended by a fault, or over one of its limits.",
    "study_cancelled": "It has ended because a person asked for it.",
    "pause_requested": "A person asked for a pause.",
    "resume_requested": "A pause was cancelled before the study was paused.",
    "cancel_requested": "A person asked for its end, or its stage is no longer needed.",
    "data_unchecked": "The study was accepted, although its data and model could not be checked in time.",
    "waiting": "What keeps the study from training, such as GPUs that others use.",
    "starting": "What its workers do before they train: loading the base, reading the data.",
    "range_test": "What its learning-rate range test does and has found.",
    "warm_start": "What an earlier study gives it, or why nothing.",
    "earlier_sweeps": "What earlier sweeps of its schedule have evaluated already.",
    "worker_capacity": "How many trials a worker wants at once, and why.",
    "device_put_aside": "A GPU on which workers died again and again gets no more trials.",
    "lease_repaired": "A lease ran further than any coordinator can ask for; the clock had been wrong.",
    "labels_changed": "A person changed its tags or its note.",
    "recipe_enqueued": "A person asked for a trial with certain parameters.",
    "recipe_dropped": "A recipe that was asked for gets no trial, and why.",
    "study_extended": "A person gave it more trials, time or GPU-hours.",
    "archived": "Lists leave it out from now on.",
    "unarchived": "Lists show it again.",
    "deleted": "A person deleted it; until a certain time it can be restored.",
    "removing": "The time of grace is over, and a coordinator removes it.",
    "restored": "The deletion was taken back.",
    "champion_crowned": "Its winner is the first champion of its schedule.",
    "champion_dethroned": "Its winner is better than the champion beyond the noise, and takes its place.",
    "champion_defended": "Its winner is not better beyond the noise, or that cannot be told.",
    "champion_unchallenged": "It had no winner to compare with the champion.",
    "champion_succeeded": "The champion could not be evaluated any more, and its winner follows it.",
}
_TRIALS = {
    "attempt_dispatched": "An attempt of the trial was sent to a worker.",
    "attempt_running": "The attempt trains.",
    "attempt_completed": "It has trained to its end; so has the trial.",
    "attempt_pruned": "A pruning rule has ended the trial.",
    "attempt_diverged": "The trial's loss or gradient was not finite, or far above its start.",
    "attempt_out_of_memory": "The trial does not fit on the device, not even alone.",
    "attempt_failed": "The trial has failed: bad data, bad code, or a missing metric.",
    "attempt_lost": "The worker died or could not be reached. Another attempt follows.",
    "attempt_paused": "The attempt has written a checkpoint and left. Another attempt follows.",
    "attempt_cancelled": "The trial was stopped with its study.",
    "trial_completed": "The trial had completed, which a coordinator found out after a crash.",
    "trial_pruned": "Likewise: it had been pruned.",
    "trial_diverged": "Likewise: it had diverged.",
    "trial_out_of_memory": "Likewise: it did not fit.",
    "trial_failed": "The trial has failed without an attempt that did: too many attempts were lost.",
    "trial_cancelled": "The trial was stopped while no attempt of it ran.",
    "prune_decided": "A pruning rule has decided to end the trial; the worker is told.",
    "stop_requested": "A person asked for the end of the trial.",
    "champion_evaluated": "The champion of its schedule was evaluated on the study's eval data.",
    "challenger_evaluated": "Likewise the study's own winner.",
    "checkpoint_unusable": "The trial begins again, because no checkpoint of it could be read.",
}
_SCHEDULES = {
    f"{SCHEDULE}{ScheduleEventKind.CREATED}": "The schedule was added.",
    f"{SCHEDULE}{ScheduleEventKind.CHANGED}": "A person changed it.",
    f"{SCHEDULE}{ScheduleEventKind.REMOVED}": "A person removed it.",
    f"{SCHEDULE}{ScheduleEventKind.UNCHECKED}": "Its data and model could not be checked in time.",
    f"{SCHEDULE}{ScheduleEventKind.SKIPPED}": "A firing made no sweep, since an earlier one was under way.",
    f"{SCHEDULE}{ScheduleEventKind.MISSED}": "Firings came and went while no coordinator was there.",
    f"{SCHEDULE}{ScheduleEventKind.QUEUED}": "A firing waits until the earlier sweep has ended.",
    f"{SCHEDULE}{ScheduleEventKind.CONTINUED}": "A firing resumed the sweep that its window had paused.",
    f"{SCHEDULE}{ScheduleEventKind.CANCELLED_EARLIER}": "A firing cancelled the earlier sweep.",
    f"{SCHEDULE}{ScheduleEventKind.ENDED}": "It has fired for the last time: its end has come.",
    f"{SCHEDULE}{ScheduleEventKind.FAILED}": "A firing made no sweep: its definition cannot be read.",
    f"{SCHEDULE}{ScheduleEventKind.REPAIRED}": "Its next time was out of reach, after a wrong clock.",
}
_SERVICE = {"cluster_seen": "The machines and devices of the Ray cluster have changed."}

GROUPS = {"studies": _STUDIES, "trials": _TRIALS, "schedules": _SCHEDULES, "the cluster": _SERVICE}
"""What an event is about -> kind -> when it is written."""
KINDS = {kind: sentence for group in GROUPS.values() for kind, sentence in group.items()}

STUDY_ENDS = frozenset(f"study_{state}" for state in StudyState if state in TERMINAL_STUDY_STATES)
"""Kinds of which a study has one at most, its end."""


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise PydanticKnownError("enum", {"expected": ", ".join(f"'{known}'" for known in KINDS)})
    return kind


Kind = Annotated[str, AfterValidator(_known), Field(json_schema_extra={"enum": list(KINDS)})]
