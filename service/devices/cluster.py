"""The nodes of the Ray cluster as a coordinator last saw them: the REST process does not ask Ray.

They are in the events: a row that belongs to no study each time a coordinator starts or sees a change.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from search_spaces.wording import counted
from service.db.models import EventRow

CLUSTER_SEEN = "cluster_seen"


@dataclass(frozen=True, order=True)
class Node:
    """A machine of the cluster, with all that it has, taken or not."""

    cpus: float
    gpus: float

    def workers(self, gpus_each: float) -> int:
        """How many workers fit, each with a core and so many GPUs."""
        by_gpu = self.gpus / gpus_each if gpus_each > 0 else self.cpus
        return max(0, int(min(self.cpus, by_gpu)))


@dataclass(frozen=True)
class Cluster:
    nodes: tuple[Node, ...]
    seen_at: datetime
    """When it began to look so."""


def record(session: Session, nodes: Iterable[Node]) -> None:
    """Keep what a coordinator sees now: each kind of node with its number, which is short for any cluster."""
    kinds = [{**asdict(node), "nodes": number} for node, number in Counter(nodes).most_common()]
    words = [f"{counted(k['nodes'], 'node')} with {k['cpus']:g} CPU and {k['gpus']:g} GPU" for k in kinds]
    message = "; ".join(words) or "no nodes"
    session.add(EventRow(kind=CLUSTER_SEEN, message=message, data={"nodes": kinds}))


def latest(session: Session) -> Cluster | None:
    """What a coordinator saw last; None: none has seen anything yet."""
    row = session.scalars(_seen().order_by(EventRow.id.desc()).limit(1)).first()
    nodes = None if row is None else _nodes(row)
    return None if row is None or nodes is None else Cluster(nodes, row.at)


def seen_since(session: Session, since: datetime) -> set[Node]:
    """Every machine that a coordinator has seen from then on, and what the cluster was just before."""
    earlier = session.scalars(_seen().where(EventRow.at < since).order_by(EventRow.id.desc()).limit(1))
    rows = [*earlier, *session.scalars(_seen().where(EventRow.at >= since))]
    return {node for row in rows for node in _nodes(row) or ()}


def _seen() -> Select[EventRow]:
    return select(EventRow).where(EventRow.study_id.is_(None), EventRow.kind == CLUSTER_SEEN)


def _nodes(row: EventRow) -> tuple[Node, ...] | None:
    """The machines that an event tells of; None: an older version wrote more than an event holds."""
    try:
        # A version without `data` wrote the kinds into the message.
        kinds = json.loads(row.message) if row.data is None else row.data["nodes"]
    except ValueError:
        return None
    nodes: list[Node] = []
    for kind in kinds:
        number = kind.get("nodes", 1)  # an older version wrote each node by itself
        nodes += [Node(cpus=kind["cpus"], gpus=kind["gpus"])] * number
    return tuple(sorted(nodes))
