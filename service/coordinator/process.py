"""The coordinator process: what it opens, connects to and closes."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace
from typing import cast

from service.artifacts.places import open_places
from service.coordinator.cluster import ray_authentication
from service.coordinator.cluster.deliveries import Workers
from service.coordinator.cluster.ray_resources import until_it_listens
from service.coordinator.cluster.ray_workers import RayWorkers
from service.coordinator.cluster.silence import SilenceLimits, Watched
from service.coordinator.loop import CONNECT_SECONDS, Coordinator
from service.coordinator.outages import until_it_answers
from service.coordinator.policy.warm_pool import PoolLimits
from service.db.database import open_database
from service.maintenance.schema import check_schema
from service.optuna_store.storage import close_storage, open_storage
from service.settings import Settings
from service.telemetry import traces
from service.telemetry.ends import follow_ends
from service.telemetry.logs import configure_logging, log_end


def run(settings: Settings) -> None:
    """The coordinator process: until SIGTERM or SIGINT.

    A database that does not answer at the start is waited for. A Ray cluster is not: a wrong address is more
    likely than one that is about to start, and whoever supervises this process starts it again.

    Raises:
        Unavailable: the cluster cannot be reached or does not let this process in; one line says what to set.
    """
    configure_logging(settings)
    open_places(settings)  # a URL that nothing here reaches is better known now than at the first adapter
    with ExitStack() as closing:
        database = open_database(settings)
        closing.callback(database.dispose)
        closing.callback(follow_ends(database, log_end))
        if (sender := traces.open_traces(settings, "nightsweep-coordinator")) is not None:
            closing.callback(sender.close)
            closing.callback(follow_ends(database, sender.tell))
        until_it_answers(lambda: check_schema(database.engine))
        storage = until_it_answers(lambda: open_storage(settings))
        closing.callback(close_storage, storage)
        address = settings.ray_address or "auto"
        if settings.workers_end_with_coordinator:  # it was started beside this process
            until_it_listens(address, CONNECT_SECONDS)
        ray_authentication.require(settings)
        connect = partial(
            RayWorkers,
            address,
            orphan_timeout_s=settings.orphan_timeout_seconds,
            silence=SilenceLimits.of(settings),
            pool=PoolLimits(per_node=settings.warm_workers, keep_base_s=settings.keep_base_seconds),
        )
        patience = 2 * settings.worker_silence_seconds
        workers = Watched(SimpleNamespace(connect=connect), max(CONNECT_SECONDS, patience)).connect()
        closing.callback(workers.close)
        stop, cut_short = threading.Event(), threading.Event()
        parent = os.getppid()

        def end(*_: object) -> None:
            # The second time, and where a supervisor has died, whose Ray dies with it, nothing is waited for.
            if stop.is_set() or os.getppid() != parent:
                cut_short.set()
            stop.set()

        for signum in (signal.SIGTERM, signal.SIGINT):  # after Ray, which installs handlers of its own
            signal.signal(signum, end)
        watched = cast(Workers, Watched(workers, patience))
        Coordinator(settings, database, storage, watched).run(stop, cut_short)
