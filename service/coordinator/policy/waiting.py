"""What a study waits for, in words: for a worker, for its first trial to start, for its turn. Pure.

Words are written down when they change, so they hold nothing that changes from second to second.
"""

from __future__ import annotations

from dataclasses import dataclass

from search_spaces.wording import counted
from service.coordinator.policy.placement import WorkerShape
from service.states import TRAINING

WAITING = "waiting"
"""The kind of event that says what a study waits for."""
STARTING = "starting"
"""The kind of event that says what a worker does before the first trial trains."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a running study stands."""

    words: str
    waits: bool
    """For something, which its history tells of. That trials start or train is told by their own events."""


def for_workers(*, started: int, starting: int) -> str:
    """For the first of the workers that were asked for.

    Args:
        started: those that can take trials.
        starting: those that cannot yet.
    """
    words = f"waiting for a worker: {started} of {started + starting} started"
    return f"{words} (each imports its libraries first)"


def for_a_worker_that_starts(last_death: str) -> str:
    """For one that does not die while starting, as the last one did."""
    return (
        "waiting for a worker: another one starts after a pause of up to a minute; the last one died while "
        f"starting: {last_death.rstrip('.')}"
    )


def for_the_cluster(shape: WorkerShape, *, capacity: int, gpus: float) -> str:
    """For a free place on the cluster where there is none.

    Args:
        shape: what one worker reserves.
        capacity: how many such workers the cluster would hold if it were empty.
        gpus: how many GPUs it has.
    """
    if capacity > 0:
        return "waiting for a worker: other studies use every machine or GPU that this one could use"
    if shape.num_gpus > gpus:
        return f"waiting for a worker: each needs {_gpus(shape.num_gpus)}, but the cluster has {gpus:g}"
    return f"waiting for a worker: no machine of the cluster has {needs(shape)}, which one worker needs"


def needs(shape: WorkerShape) -> str:
    """What one worker reserves, for example `1 CPU and 2 GPUs`."""
    return f"{shape.num_cpus:g} CPU" + (f" and {_gpus(shape.num_gpus)}" if shape.num_gpus else "")


def standing(
    *,
    training: bool,
    preparing: str | None,
    live: int,
    started: int,
    starting: int,
    no_worker: str | None,
    resting: bool,
) -> Standing | None:
    """How a running study stands.

    Args:
        training: whether one of its trials trains.
        preparing: what a worker does for a trial that is about to.
        live: trials that were sent to workers.
        started: workers that can take trials.
        starting: workers that cannot yet.
        no_worker: why there is none that can.
        resting: whether a trial whose worker was lost is kept back for a moment.

    Returns:
        None: nothing that has not been said.
    """
    waits = not training and not live
    if training:
        words = TRAINING
    elif live:
        words = f"starting: {preparing or 'its trials were sent to their workers'}"
    elif no_worker is not None:
        return Standing(words=no_worker, waits=True)
    elif resting:
        words = "waiting: trials whose workers were lost are tried again after a pause of up to a minute"
    else:
        return None
    if starting:
        words += f"; {started} of {started + starting} workers started"
    return Standing(words=words, waits=waits)


def for_its_turn(running: int, limit: int, *, owner: str | None = None, coordinators: int = 1) -> str:
    """For other studies to end.

    Args:
        running: those that run.
        limit: how many may.
        owner: whose they are, where the limit is one of each owner's.
        coordinators: how many run studies, each with that limit.
    """
    whose = "" if owner is None else f" of {owner!r}"
    are = f"waiting: {counted(running, 'study', 'studies')}{whose} {'is' if running == 1 else 'are'} running"
    if owner is not None:
        return f"{are}, which is the limit for one owner"
    if coordinators > 1:
        return f"{are}, which is the limit of {coordinators} coordinators together"
    return f"{are}, which is the limit" if running == limit else f"{are}, and the limit is {limit}"


def _gpus(number: float) -> str:
    return f"{number:g} GPU" + ("" if number == 1 else "s")
