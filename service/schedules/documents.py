"""Documents about schedules as people send them, checked whole: every fault is reported at once."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from search_spaces.definition import StudyDefinition
from search_spaces.errors import Fault
from search_spaces.faults import nearest_name, shown, unknown_keys
from search_spaces.values.time_of_day import TIME_OF_DAY_FORMS, parse_time_of_day
from service.db.kinds import CatchUp, Overlap, UntilAction
from service.db.models import Schedule
from service.definitions.acceptance import check_definition
from service.definitions.labels import label_faults
from service.errors import Invalid
from service.schedules import firings, templates
from service.schedules.body_schemas import CHANGE_SCHEMA, CREATE_SCHEMA, LARGEST_SEED
from service.schedules.firings import BOUND_FORM, Times

MAX_NAME = 100
"""A sweep's name is the schedule's and 14 characters more, and a study's name has at most 128."""
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME - 1}}}")
_NAME_FORM = (
    f"up to {MAX_NAME} letters, digits, dots, hyphens and underscores, beginning with a letter or a digit"
)

_CHOICES: Mapping[str, tuple[type[StrEnum], str]] = {
    "overlap": (Overlap, "is not a rule for sweeps that overlap"),
    "catch_up": (CatchUp, "is not a rule for firings that were missed"),
    "until_action": (UntilAction, "is not what a sweep can do when its window ends"),
}
_FLAGS = ("enabled", "repeat_configurations", "champion")
_BOUNDS = ("start", "end")
_CLEARED = ("start", "end", "until", "sweep_name")
"""Keys that null takes away."""
_TIMING = ("cron", "timezone", "start", "end", "enabled")


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """A schedule's definition."""

    next: StudyDefinition
    """Of the next sweep: with the paths of data that are its."""
    patterns: Mapping[str, str] = field(default_factory=dict)
    """`train`, `eval` -> the absolute path with fields."""
    absent: tuple[str, ...] = ()
    """Files of the next sweep that are not there yet."""

    def document(self) -> dict[str, Any]:
        """As it is stored."""
        document = self.next.model_dump(mode="json")
        return {**document, "data": {**document["data"], **self.patterns}}


@dataclass(frozen=True, kw_only=True)
class NewSchedule:
    name: str
    cron: str
    timezone: str
    enabled: bool
    overlap: Overlap
    catch_up: CatchUp
    start: str | None
    end: str | None
    until: str | None
    until_action: UntilAction
    sweep_name: str | None
    repeat_configurations: bool
    champion: bool
    definition: Accepted
    tags: Sequence[str] | None = None
    """Sorted; None: none."""
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class ScheduleChange:
    values: Mapping[str, Any]
    """Key -> its new value; None where it is taken away."""
    seed: int | None = None
    definition: Accepted | None = None
    """Of either None: as it was."""


@dataclass(frozen=True, kw_only=True)
class Checks:
    """What definitions are checked against."""

    data_roots: Sequence[Path]
    plugins: Collection[str]
    now: datetime


def read_new(document: Any, checks: Checks) -> NewSchedule:
    """A new schedule from what was sent. Raises `Invalid` with every fault at once."""
    sent, faults = _mapping(document, list(CREATE_SCHEMA["properties"]))
    for key in CREATE_SCHEMA["required"]:
        if key not in sent:
            faults.append(Fault(path=key, value=None, message="is required"))
    values, found = _values(sent)
    faults += found
    values = {"timezone": "UTC", "enabled": True, **values}
    faults += _timing_faults(values, sent, checks.now)
    filling = _filling(values, checks.now, run=1)
    faults += _sweep_name_faults(sent, filling)
    definition, found = _definition(sent, checks, filling)
    faults += [*found, *_window_faults(values, sent.get("definition"), sent)]
    name = sent.get("name")
    if name is None and definition is not None:
        name = definition.next.name
    if name is not None:
        faults += _name_faults(name)
    if faults or definition is None:
        raise Invalid("The schedule", faults)
    return NewSchedule(
        name=str(name),
        cron=values["cron"],
        timezone=values["timezone"],
        enabled=values["enabled"],
        overlap=Overlap(values.get("overlap", Overlap.SKIP)),
        catch_up=CatchUp(values.get("catch_up", CatchUp.LATEST)),
        start=values.get("start"),
        end=values.get("end"),
        until=values.get("until"),
        until_action=UntilAction(values.get("until_action") or UntilAction.END),
        sweep_name=values.get("sweep_name"),
        repeat_configurations=values.get("repeat_configurations", False),
        champion=values.get("champion", True),
        definition=definition,
        tags=values.get("tags"),
        note=values.get("note"),
    )


def read_change(document: Any, present: Schedule, checks: Checks) -> ScheduleChange:
    """A change from what was sent, checked against what the schedule has. Raises `Invalid`."""
    known = list(CHANGE_SCHEMA["properties"])
    sent, faults = _mapping(document, known)
    if not sent and not faults:
        faults.append(
            Fault(path="", value={}, message="changes nothing", allowed=f"the keys {', '.join(known)}")
        )
    values, found = _values(sent)
    faults += found
    if values.get("until_action", "") is None:
        del values["until_action"]
    before = {key: getattr(present, key) for key in (*_TIMING, *_CLEARED)}
    after = before | values
    faults += _timing_faults(after, sent, checks.now)
    filling = _filling(after, checks.now, run=present.sweeps_made + 1)
    faults += _sweep_name_faults(sent, filling)
    if "name" in sent:
        faults += _name_faults(sent["name"])
    if "seed" in sent:
        faults += _seed_faults(sent["seed"])
    definition, found = _definition(sent, checks, filling)
    faults += found
    if {"until", "until_action", "definition"} & sent.keys():
        faults += _window_faults(after, sent.get("definition", present.definition), sent)
    if faults:
        raise Invalid("The change", faults)
    if "name" in sent:
        values["name"] = sent["name"]
    return ScheduleChange(values=values, seed=sent.get("seed"), definition=definition)


def read_times(*, cron: object, timezone: object, start: object, end: object, now: datetime) -> Times:
    """When a schedule would fire that nobody has made. Raises `Invalid` with every fault at once."""
    given = {"cron": cron, "timezone": timezone, "start": start, "end": end}
    sent = {key: value for key, value in given.items() if value is not None}
    values, faults = _values(sent)
    values = {"timezone": "UTC", **values}
    faults += _timing_faults(values, sent, now)
    if faults:
        raise Invalid("The request", [fault.below("query") for fault in faults])
    return _times(values)


def _mapping(document: Any, known: list[str]) -> tuple[Mapping[str, Any], list[Fault]]:
    if not isinstance(document, Mapping):
        keys = ", ".join(known)
        fault = Fault(path="", value=shown(document), message="must be a mapping", allowed=f"the keys {keys}")
        raise Invalid("The body", [fault])
    return document, unknown_keys(document, known, "")


def _values(sent: Mapping[str, Any]) -> tuple[dict[str, Any], list[Fault]]:
    """The values of the keys that stand by themselves, as they are stored, and what is wrong with them."""
    values = {key: sent[key] for key in ("cron", "timezone", *_FLAGS, *_CHOICES, *_CLEARED) if key in sent}
    faults = [
        Fault(path=key, value=shown(sent[key]), message="must be true or false", allowed="true, false")
        for key in _FLAGS
        if key in sent and not isinstance(sent[key], bool)
    ]
    found = label_faults(sent)
    faults += found
    if "tags" in sent and not found:
        values["tags"] = sorted(sent["tags"]) or None
    if "note" in sent and not found:
        values["note"] = (sent["note"] or "").strip() or None
    for key, (kind, message) in _CHOICES.items():
        known, value = list(kind), sent.get(key)
        if key in sent and value not in known and not (key == "until_action" and value is None):
            nearest = nearest_name(value, known)
            fault = Fault(
                path=key, value=shown(value), message=message, allowed=", ".join(known), nearest=nearest
            )
            faults.append(fault)
    for key in _BOUNDS:
        if sent.get(key) is not None:
            values[key] = firings.read_bound(sent[key])
            if values[key] is None:
                message = "is not a date, or a date and time without seconds and offset"
                faults.append(Fault(path=key, value=shown(sent[key]), message=message, allowed=BOUND_FORM))
    if sent.get("until") is not None:
        try:
            values["until"] = f"{parse_time_of_day(str(sent['until']).strip()[:10]):%H:%M}"
        except ValueError as error:
            fault = Fault(
                path="until", value=shown(sent["until"]), message=str(error), allowed=TIME_OF_DAY_FORMS
            )
            faults.append(fault)
    return values, faults


def _times(values: Mapping[str, Any]) -> Times:
    return Times(
        cron=values["cron"], timezone=values["timezone"], start=values.get("start"), end=values.get("end")
    )


def _timing_faults(values: Mapping[str, Any], sent: Mapping[str, Any], now: datetime) -> list[Fault]:
    """What is wrong with when it fires, as far as it was sent."""
    found = firings.check(values.get("cron"), values["timezone"], now)
    if found:
        return [fault for fault in found if fault.path in sent]
    blame = next((key for key in ("end", "start", *_TIMING) if key in sent), None)
    wrong_bound = any(sent.get(key) is not None and values.get(key) is None for key in _BOUNDS)
    if blame is None or wrong_bound or values.get("enabled") is False:
        return []
    times = _times(values)
    if times.first is not None and times.last is not None and times.last < times.first:
        message = f"ends ({times.end}) before it starts ({times.start})"
        return [Fault(path=blame, value=shown(sent[blame]), message=message, allowed="a later end")]
    if times.last is not None and times.next(now) is None:
        passed = "has passed" if times.last <= now else "comes before the first firing"
        message = f"leaves nothing that fires: the end, {times.end} ({times.timezone}), {passed}"
        return [Fault(path=blame, value=shown(sent[blame]), message=message, allowed="a later end, or none")]
    return []


def _filling(values: Mapping[str, Any], now: datetime, *, run: int) -> templates.Values:
    """What the fields of patterns are tried with: the next firing; now, where its times are wrong."""
    if firings.check(values.get("cron"), values["timezone"], now):
        return templates.Values.of(now, "UTC", run)
    times = _times(values)
    # Of a schedule that has ended, the one that would come.
    following = times.next(now) or firings.next_firing(times.cron, times.timezone, now) or now
    return templates.Values.of(following, times.timezone, run)


def _sweep_name_faults(sent: Mapping[str, Any], filling: templates.Values) -> list[Fault]:
    pattern = sent.get("sweep_name")
    return [] if pattern is None else templates.name_faults(pattern, filling)


def _window_faults(values: Mapping[str, Any], definition: Any, sent: Mapping[str, Any]) -> list[Fault]:
    """A window needs a time of day, and no sweep has two of them."""
    if values.get("until") is None:
        if sent.get("until_action") is None:
            return []
        message = 'needs until, which is missing; give a time of day, such as until: "06:00"'
        return [
            Fault(
                path="until_action",
                value=shown(sent["until_action"]),
                message=message,
                allowed="with until",
            )
        ]
    budget = definition.get("budget") if isinstance(definition, Mapping) else None
    if not isinstance(budget, Mapping) or budget.get("until") is None:
        return []
    message = "is given twice: the definition's budget.until ends each sweep, too"
    allowed = "until, or the definition's budget.until"
    return [Fault(path="until", value=shown(values["until"]), message=message, allowed=allowed)]


def _definition(
    sent: Mapping[str, Any], checks: Checks, filling: templates.Values
) -> tuple[Accepted | None, list[Fault]]:
    """The definition, checked as that of the next sweep."""
    if "definition" not in sent:
        return None, []
    document = sent["definition"]
    patterns = templates.patterns_of(document)
    faults = [
        fault
        for part, pattern in patterns.items()
        if (fault := templates.fault_of(pattern, f"data.{part}")) is not None
    ]
    wrong = {fault.path for fault in faults}
    if patterns and not wrong:
        document = templates.filled(document, patterns, filling)
    ways = [f"data.{part}" for part in patterns]
    definition, found = check_definition(document, checks.data_roots, checks.plugins, ways)
    faults += [fault for fault in found if not (wrong and fault.path in ways)]
    if faults or definition is None:
        return None, [fault.below("definition") for fault in faults]
    accepted = Accepted(
        next=definition,
        patterns={
            part: templates.anchored(pattern, filling, checks.data_roots)
            for part, pattern in patterns.items()
        },
        absent=tuple(
            f"data.{part} {path}"
            for part in patterns
            if not os.path.exists(path := str(getattr(definition.data, part)))
        ),
    )
    return accepted, []


def _name_faults(name: Any) -> list[Fault]:
    if isinstance(name, str) and _NAME.fullmatch(name):
        return []
    return [Fault(path="name", value=shown(name), message="is not a valid name", allowed=_NAME_FORM)]


def _seed_faults(seed: Any) -> list[Fault]:
    if isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed <= LARGEST_SEED:
        return []
    allowed = f"a whole number from 0 to {LARGEST_SEED}"
    return [Fault(path="seed", value=shown(seed), message="is not a valid seed", allowed=allowed)]
