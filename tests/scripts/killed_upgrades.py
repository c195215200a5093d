"""A process that upgrades databases on order, and dies by SIGKILL at the n-th thing it wants of them.

It imports the service once and forks for each order, which is a line of JSON on its standard input:
`{"home": ..., "database_url": ... or null, "kill_at": n or null}`. It answers with a line each:
`{"killed": ..., "steps": ...}`, where steps are the statements and commits of an upgrade that was let live.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine

from service.maintenance import schema
from service.settings import Settings


def upgrade(order: dict[str, Any]) -> int:
    steps = itertools.count(1)
    done = 0

    def step(*_: object) -> None:
        nonlocal done
        done = next(steps)
        if done == order["kill_at"]:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "before_cursor_execute", step)
    event.listen(Engine, "commit", step)
    given = {"database_url": order["database_url"]} if order["database_url"] else {}
    schema.upgrade(Settings(home=Path(order["home"]), **given))
    return done


def main() -> None:
    for line in sys.stdin:
        receiving, sending = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(receiving)
            os.write(sending, str(upgrade(json.loads(line))).encode())
            os._exit(0)
        os.close(sending)
        with os.fdopen(receiving) as said:
            steps = said.read()
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code not in (0, -signal.SIGKILL):
            raise SystemExit(f"an upgrade failed with {code}")
        print(json.dumps({"killed": code != 0, "steps": int(steps or 0)}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
