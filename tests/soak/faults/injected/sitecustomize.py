"""Loaded by every Python process of a deployment under test: it makes the process die at a named point.

The processes are the product's own, started with this folder on their `PYTHONPATH`. Functions are wrapped
right after their module was imported, and every passing of a point that is armed is counted across all
processes, in a file. At the chosen passings the process kills or stops itself, as from outside: nothing of
Python runs any more. Or the thread that passes hangs there, and the others of its process go on. The product
knows nothing of this. A name that the product no longer has ends the process at once, loudly.

Only the standard library is used: this runs before anything else does.
"""

from __future__ import annotations

import fcntl
import functools
import importlib.machinery
import itertools
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BROKEN_EXIT = 97
_WORKER = "workers.actor.gpu_worker:GpuWorker.__init__"
"""Its name is written down with its process id: from outside nobody could tell which worker is which."""
_FOLDER = os.environ.get("FAULTS_FOLDER")
_PROCESS = os.environ.get("FAULTS_PROCESS", "")
_SERVE = "serve."
"""How the name of a service begins whose processes were not started one by one from the tests."""
_active = threading.local()


class _Hook:
    """Finds a module as everybody else does, and has its functions wrapped once it was executed."""

    def __init__(self, points: list[dict[str, Any]]) -> None:
        self._modules = {
            name.partition(":")[0] for point in points for name in (point["target"], point["during"]) if name
        }
        self._modules |= {_WORKER.partition(":")[0], "sqlite3.dbapi2"}
        self._points = points

    def find_spec(
        self, name: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self._modules:
            return None
        spec = None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(name, path, target)) is not None:
                break
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            if name == "sqlite3.dbapi2":
                _name_writers(module)
            else:
                self._wrap_all(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def _wrap_all(self, module: Any) -> None:
        outer = {point["during"] for point in self._points if point["during"]}
        for name in sorted(outer):
            if name.partition(":")[0] == module.__name__:
                _replace(module, name, functools.partial(_noting, name))
        if _WORKER.partition(":")[0] == module.__name__:
            _replace(module, _WORKER, _naming)
        for point in self._points:
            if point["target"].partition(":")[0] == module.__name__:
                _replace(module, point["target"], functools.partial(_passing, point))


def _replace(module: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    *path, last = name.partition(":")[2].split(".")
    owner = module
    try:
        for part in path:
            owner = getattr(owner, part)
        original = owner.__dict__[last]
        if not callable(original):
            raise TypeError(f"{last} is a {type(original).__name__}")
    except (AttributeError, KeyError, TypeError) as error:
        _refuse(f"there is no function {name}: {error!r}")
    setattr(owner, last, wrap(original))


def _noting(outer: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """Lets inner points know that they are reached from within `outer`, and by which call."""

    @functools.wraps(original)
    def noted(*args: Any, **kwargs: Any) -> Any:
        before = getattr(_active, "calls", None)
        _active.calls = {**(before or {}), outer: {}}
        try:
            return original(*args, **kwargs)
        finally:
            _active.calls = before

    return noted


def _passing(point: dict[str, Any], original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def passed(*args: Any, **kwargs: Any) -> Any:
        here = _is_here(point, args)
        if here and point["when"] == "before":
            _pass(point)
        result = original(*args, **kwargs)
        if here and point["when"] == "after" and (not point["returning"] or result):
            _pass(point)
        return result

    return passed


def _naming(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def named(self: Any, spec: Any) -> Any:
        (Path(str(_FOLDER)) / "workers" / str(os.getpid())).write_text(spec.name)
        return original(self, spec)

    return named


def _is_here(point: dict[str, Any], args: tuple[Any, ...]) -> bool:
    if point["given"] and point["given"] not in {type(arg).__name__ for arg in args}:
        return False
    if not point["during"]:
        return True
    counts = (getattr(_active, "calls", None) or {}).get(point["during"])
    if counts is None:
        return False
    counts[point["name"]] = counts.get(point["name"], 0) + 1
    return bool(counts[point["name"]] == point["nth"])


def _pass(point: dict[str, Any]) -> None:
    """Count a passing, and end or stop this process when it is one of those that were chosen."""
    armed = Path(str(_FOLDER)) / "armed" / point["file"]
    if not armed.exists():
        return
    with armed.with_name(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            plan = json.loads(armed.read_text())
        except FileNotFoundError:
            return
        plan["passed"] += 1
        due = plan["passed"] in plan["at"]
        if due:
            plan["fired"].append({"process": _PROCESS, "pid": os.getpid(), "at": time.time()})
        # Another fault may kill this process here, and half a plan would never be read again.
        fresh = armed.with_name(f".{os.getpid()}")
        fresh.write_text(json.dumps(plan))
        fresh.rename(armed)
    if not due:
        return
    if plan["action"] == "hang":
        while True:  # this thread alone: the others of the process go on
            time.sleep(60)
    if plan["action"] == "stop":
        # To this very thread: it does not come back from the call before it is stopped.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        return
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def _name_writers(module: Any) -> None:
    """SQLite does not know who writes: its audit triggers ask this function."""
    connect = module.connect

    @functools.wraps(connect)
    def named(*args: Any, **kwargs: Any) -> Any:
        connection = connect(*args, **kwargs)
        connection.create_function("fault_writer", 0, lambda: _PROCESS)
        return connection

    module.connect = named


def _refuse(message: str) -> None:
    (Path(str(_FOLDER)) / "broken").write_text(f"{_PROCESS}: {message}\n")
    os.write(2, f"fault points: {message}\n".encode())
    os._exit(BROKEN_EXIT)


def _name_itself() -> None:
    """A process of a whole service is named by what it runs, in its writes to PostgreSQL, too."""
    global _PROCESS
    words = sys.orig_argv
    commands = [word for before, word in itertools.pairwise(words) if before == "service.cli"]
    _PROCESS = f"{commands[0] if commands else 'ray'}.{os.getpid()}"
    for name in ("NIGHTSWEEP_DATABASE_URL", "NIGHTSWEEP_OPTUNA_URL"):
        if name in os.environ:
            own = f"application_name={_PROCESS}"
            os.environ[name] = re.sub(r"application_name=[^&]*", own, os.environ[name])


def _install() -> None:
    if _PROCESS.startswith(_SERVE):
        _name_itself()
    kind = re.split("[-.]", _PROCESS)[0]
    points = json.loads((Path(str(_FOLDER)) / "points.json").read_text())
    sys.meta_path.insert(0, _Hook([point for point in points if point["process"] == kind]))


if _FOLDER:
    _install()
