"""The kinds of events: each that the service writes is known and documented."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

from service.db.kinds import Contestant, ContestDecision, ScheduleEventKind
from service.events.kinds import GROUPS, KINDS, SCHEDULE
from service.states import TERMINAL_ATTEMPT_STATES, UNFINISHED_ATTEMPT_STATES, AttemptState, StudyState
from tests.support.checkout import ROOT

PAGE = (ROOT / "docs/reference/events.md").read_text()
WRITERS = {"append_event": 2, "record_change": 2, "event": 1, "EventRow": None}
"""Functions that write an event -> where the kind stands among their arguments; None: by name alone."""
OF_STATES = {
    "study_": set(StudyState),
    "attempt_": set(AttemptState),
    "trial_": TERMINAL_ATTEMPT_STATES - UNFINISHED_ATTEMPT_STATES,
    "champion_": set(ContestDecision),
}
OF_WHOM = {"_evaluated": set(Contestant)}


def written() -> Iterator[tuple[Path, int, str]]:
    """Every kind that is written somewhere in the service: file, line, kind."""
    for path in sorted((ROOT / "service").rglob("*.py")):
        module = None
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name not in WRITERS:
                continue
            at = WRITERS[name]
            named = [keyword.value for keyword in node.keywords if keyword.arg == "kind"]
            given = [*named, *([node.args[at]] if at is not None and len(node.args) > at else [])]
            for argument in given:
                if isinstance(argument, ast.JoinedStr):
                    ending = ast.unparse(argument.values[-1]).strip("'\"")
                    if ending in OF_WHOM:
                        yield from ((path, node.lineno, f"{who}{ending}") for who in OF_WHOM[ending])
                        continue
                    prefix = ast.unparse(argument.values[0]).strip("'\"")
                    yield from ((path, node.lineno, f"{prefix}{state}") for state in OF_STATES[prefix])
                elif ast.unparse(argument) != "kind":  # what a function of this list was given itself
                    dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                    module = module or importlib.import_module(dotted)
                    yield path, node.lineno, str(eval(ast.unparse(argument), vars(module)))


def test_every_kind_that_is_written_is_known() -> None:
    found = list(written())
    assert [(str(path), line, kind) for path, line, kind in found if kind not in KINDS] == []
    schedules = {f"{SCHEDULE}{kind}" for kind in ScheduleEventKind}
    assert {kind for _, _, kind in found} | schedules == set(KINDS)


def test_the_page_has_the_same_kinds_and_sentences() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, re.MULTILINE))
    assert rows == KINDS
    assert re.findall(r"^## Of (.*)$", PAGE, re.MULTILINE) == list(GROUPS)
