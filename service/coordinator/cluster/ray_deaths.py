"""What Ray says of an actor that does not answer any more: its process died, or the machine under it did.

Ray tells it in words only (`ActorDiedErrorContext.error_message`, Ray 2.60), and a machine that has just gone
may still count as alive when its workers are found dead. So the node's own state is looked at, too.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable

from service.states import LossCause

_OF_A_NODE = re.compile(r"\bits node has died\b|\bnode was terminated\b|\bnode is dead\b", re.IGNORECASE)
_ADDRESS = re.compile(r"^\s*ip: (\S+)$", re.MULTILINE)
_FULL_BELOW_BYTES = 32 * 2**20
_GUESSES = re.compile(r"\s*Some common causes include:.*", re.DOTALL)
"""What Ray adds to every death: three things that may have happened, and advice on its own options."""
_CAUSE = re.compile(r"^\s*(The actor (?:is dead|died) because .*\S)\s*$", re.MULTILINE)
_PROCESS = re.compile(r" \(pid=[^)]*\)")


def read_death(
    message: str, *, died: bool, preempted: bool, alive: Callable[[], Collection[str]]
) -> tuple[str, LossCause]:
    """Why a worker is lost, in one line and as a cause.

    A process that Ray's memory monitor killed has died like any other: its trials took too much memory.

    Args:
        message: of Ray's error.
        died: Ray is sure of it. If not, the worker may well live, but cannot be talked to: an answer that
            does not unpickle, a call that it refuses.
        preempted: its machine was taken away.
        alive: asks for the addresses of the nodes that live; only where the words leave it open.
    """
    found = _CAUSE.search(message)
    reason = _GUESSES.sub("", found.group(1)) if found else first_line(message)
    if preempted:
        return f"its machine was taken away: {reason}", LossCause.NODE_DIED
    if not died:
        return reason, LossCause.UNREACHABLE
    if _OF_A_NODE.search(message):
        return reason, LossCause.NODE_DIED
    address = _ADDRESS.search(message)
    if address is not None and address.group(1) not in alive():
        return f"its machine is gone: {reason}", LossCause.NODE_DIED
    return reason, LossCause.WORKER_DIED


def full_disk(folder: str | None = None) -> str | None:
    """That the disk of a folder is full, in words; None: it is not.

    A worker that cannot write its log dies without a word about it.

    Args:
        folder: None: the one for temporary files, where a Ray of the service's own keeps its logs.
    """
    folder = folder or tempfile.gettempdir()
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"{folder} cannot be used here: {error.strerror}"
    return (
        None
        if free >= _FULL_BELOW_BYTES
        else f"the disk of {folder} is full here: {free / 2**20:.0f} MiB free"
    )


def without_process(reason: str) -> str:
    """A reason without the process that Ray names in it: the next worker's is the same in the same words."""
    return _PROCESS.sub("", reason)


def first_line(message: str) -> str:
    """The first line that says anything."""
    lines: Iterable[str] = (line.strip() for line in message.splitlines())
    return next((line for line in lines if line), "no reason given")
