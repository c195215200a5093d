"""The Ray of `nightsweep serve`: a head node without what nobody here asks for.

    python -m service.coordinator.cluster.ray_head PORT FOLDER OBJECT_STORE_BYTES

`ray start` also starts the server of Ray's dashboard and one for Ray's remote clients, whatever its options
are. Each takes a second of a core while the workers import their libraries, and a worker's node is not
announced before the first of them answers. So Ray's own class for a node is used, without these two.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from ray._private.node import Node
from ray._private.parameter import RayParams
from ray._private.services import resolve_ip_for_localhost

WATCH_SECONDS = 1.0


class HeadNode(Node):  # type: ignore[misc]  # Ray's packages are not followed
    """The control process and this machine's raylet with its agents, for as long as this process lives."""

    def start_api_server(self, **_: Any) -> None:
        """Starts no dashboard."""


def main() -> None:
    """Runs the head until SIGTERM, or until a part of it dies. Ray ends what is left with this process."""
    port, folder, object_store_bytes = sys.argv[1:]
    head = HeadNode(
        RayParams(
            node_ip_address=resolve_ip_for_localhost("127.0.0.1"),  # as whoever connects to it does
            gcs_server_port=int(port),
            temp_dir=folder,
            object_store_memory=int(object_store_bytes),
            # Nobody asks for more nodes, and the coordinator has no worker's output sent to it.
            no_monitor=True,
            include_log_monitor=False,
        ),
        head=True,
    )
    while not (dead := head.dead_processes()):
        time.sleep(WATCH_SECONDS)
    words = "; ".join(f"{what} ended with code {process.returncode}" for what, process in dead)
    # Not gracefully: a part that waits for another would never end.
    head.kill_all_processes(check_alive=False, allow_graceful=False)
    sys.exit(words)


if __name__ == "__main__":
    main()
