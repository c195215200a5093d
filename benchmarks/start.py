"""How long a study waits before it trains: on a service that has just started, and on a warm one.

    python -m benchmarks.start

Starts `nightsweep serve` in a new home, submits the quickstart's study as soon as the API answers, and then
twice more, each time once the study before has ended. Prints the seconds from the start of the service to
its answer, and for each study those from its submission to its first order, to its first optimizer step and
to its end, by the service's own times. And how much memory the waiting workers take: their own (private)
pages, and all that are resident. Run it on an idle machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from benchmarks.sweep import QUICKSTART
from service.definitions.syntax import parse_yaml
from service.embedded.ports import free_port

_WARM_SECONDS = 30.0
"""After the first study, so that replaced workers have started again."""


def definition(name: str) -> dict[str, Any]:
    """The quickstart's study with two short trials."""
    study: dict[str, Any] = parse_yaml((QUICKSTART / "study.yaml").read_bytes())
    for path in (("model", "id"), ("data", "train"), ("data", "eval")):
        study[path[0]][path[1]] = str(QUICKSTART / study[path[0]][path[1]])
    study["name"] = name
    study["search"]["trials"] = 2
    study["search"]["space"] = {"learning_rate": {"min": 1e-4, "max": 1e-2, "scale": "log"}}
    study["recipe"] |= {"batch_size": 32, "lora_r": 4}
    return study


def run_study(client: httpx.Client, name: str) -> str:
    """One row of the table."""
    began = time.time()
    answer = client.post("/v1/studies", json=definition(name))
    answer.raise_for_status()
    accepted = time.time()
    while True:
        study = client.get(f"/v1/studies/{name}").json()
        if study["ended_at"] is not None:
            break
        time.sleep(0.2)
    times: dict[str, float] = {"end": _seconds(study["ended_at"]) - began}
    events = client.get(f"/v1/studies/{name}/events", params={"limit": 200}).json()["items"]
    for what, kind in (("order", "attempt_dispatched"), ("step", "attempt_running")):
        times[what] = min(_seconds(e["at"]) for e in events if e["kind"] == kind) - began
    seconds = (accepted - began, times["order"], times["step"], times["end"])
    return f"| {name} | {' | '.join(f'{each:.2f}' for each in seconds)} |"


def _seconds(at: str) -> float:
    return datetime.fromisoformat(at.replace("Z", "+00:00")).timestamp()


def worker_memory(home: Path) -> list[tuple[float, float]]:
    """Private and resident MiB of each worker of a service."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            title, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
            if not title.startswith(b"ray::") or b"GpuWorker" not in title or bytes(home) not in environment:
                continue
            pages = (entry / "smaps_rollup").read_text()
        except OSError:
            continue
        sizes = {line.split(":")[0]: int(line.split()[1]) for line in pages.splitlines()[1:]}
        private = sizes["Private_Clean"] + sizes["Private_Dirty"]
        found.append((private / 1024, sizes["Rss"] / 1024))
    return found


def main() -> None:
    home, port = Path(tempfile.mkdtemp(prefix="nightsweep-start-")), free_port()
    command = [sys.executable, "-m", "service.cli", "serve", "--home", str(home), "--port", str(port)]
    environment = {**os.environ, "NIGHTSWEEP_DATA_ROOTS": str(QUICKSTART)}
    began = time.time()
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            while True:
                try:
                    if client.get("/readyz", params={"exclude": "coordinator"}).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.05)
            print(f"serve: the API answered after {time.time() - began:.1f} s\n")
            print("| study | accepted s | first order s | first step s | end s |")
            print("| --- " * 5 + "|")
            for name in ("cold", "warm", "warm-again"):
                print(run_study(client, name), flush=True)
                time.sleep(_WARM_SECONDS if name == "cold" else 2.0)
            print("\nworkers, private and resident MiB:")
            for private, resident in worker_memory(home):
                print(f"  {private:.0f} {resident:.0f}")
    finally:
        server.terminate()
        server.wait(60)


if __name__ == "__main__":
    main()
