"""schemathesis over the OpenAPI document, in the process, with every one of its checks.

What is generated comes in four kinds: the document's examples, its boundaries (each constraint met and
broken), random requests, right and wrong, and chains of requests in which later ones use what earlier ones
made. Two things are added. Path parameters of right requests mostly name what is there, or nothing but 404
would be seen. And right bodies are mostly those of `definitions.py`, of which each must be accepted; of
those that the schema generates a 422 is expected, too, since a schema cannot say that `min` lies below `max`.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.core.transport import Response
from schemathesis.engine import Status, events, from_schema
from schemathesis.generation import GenerationMode
from schemathesis.generation.case import Case
from schemathesis.generation.meta import TestPhase
from schemathesis.hooks import HookContext

from tests.soak.fuzz.definitions import (
    sound_change,
    sound_definition,
    sound_key,
    sound_key_change,
    sound_rotation,
    sound_schedule,
)
from tests.soak.fuzz.world import KEY, World

SOUND = {
    "POST /v1/studies": sound_definition,
    "POST /v1/range-tests": sound_definition,
    "POST /v1/schedules": sound_schedule,
    "PATCH /v1/schedules/{schedule}": sound_change,
    "POST /v1/keys": sound_key,
    "PATCH /v1/keys/{key}": sound_key_change,
    "POST /v1/keys/{key}/rotate": sound_rotation,
}
"""Operations whose bodies a schema says only half of, and what makes right ones."""

BY_STUDY = ("POST /v1/studies/{study}/trials", "POST /v1/studies/{study}/extend")
"""Operations whose bodies are right or wrong by the definition of the study, which no schema can say."""
HALF_SAID = ("GET /v1/schedule-preview",)
"""Others, without a body: a schema knows neither cron expressions nor timezones."""

MADE_LATER = (
    "GET /v1/studies/{study}/best",
    "GET /v1/studies/{study}/trials/{number}",
    "GET /v1/studies/{study}/trials/{number}/adapter",
    "GET /v1/studies/{study}/trials/{number}/log",
    "GET /v1/schedules/{schedule}/champion",
    "GET /v1/schedules/{schedule}/champion/adapter",
)
"""What a study or schedule has only once trials run: a new one answers 404, which is no resource lost. The
one check that is left out, and the only places."""

ACCEPTED = ["2xx", "3xx", "401", "403", "404", "409", "412", "429"]
"""What may be answered to a right request; 412 is for an `If-Match` that names another revision."""

REFUSED = ["400", "401", "403", "404", "405", "409", "412", "415", "422", "429"]
"""What may be answered to a wrong one. Nothing of 500 and above, which schemathesis lets pass here."""

_IF_MATCH = re.compile(r'\*|(W/)?"[!#-~]*"( *, *(W/)?"[!#-~]*")*')


@dataclass
class Outcome:
    """What was asked and answered."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    """(operation, status) -> how many."""
    sound: Counter[tuple[str, int]] = field(default_factory=Counter)
    """The same of requests with a body that must be accepted."""
    failures: list[str] = field(default_factory=list)

    @property
    def cases(self) -> int:
        return self.statuses.total()

    def table(self) -> str:
        """How many of each status, by operation."""
        lines = []
        for operation in sorted({name for name, _ in self.statuses}):
            counts = {status: n for (name, status), n in sorted(self.statuses.items()) if name == operation}
            lines.append(f"{operation:60} " + "  ".join(f"{status}: {n}" for status, n in counts.items()))
        return "\n".join(lines)


def fuzz(
    world: World,
    *,
    examples: int,
    steps: int = 6,
    seed: int = 1,
    boundaries: int = 0,
    say: Callable[[str], None] | None = None,
) -> Outcome:
    """Ask everything that can be thought of, and check every answer.

    Args:
        world: what is asked.
        examples: random requests of each operation, and chains of requests in all.
        steps: the longest chain.
        seed: of all randomness.
        boundaries: 0 leaves the document's boundaries out; 1 tries them all, of which each operation with a
            definition has 13,000; n tries one in n of those, and all of the other operations'.
        say: told how far it is.
    """
    # Named here, since Hypothesis takes other settings where it finds a CI runner's variables: among them no
    # database of examples, without which nearly all requests of some operations are thrown away.
    generation = {
        "max-examples": examples,
        "no-shrink": True,
        "deterministic": False,
        "database": ":memory:",
    }
    config = SchemathesisConfig.from_dict(
        {
            "seed": seed,
            "headers": {"Authorization": f"Bearer {KEY}"},
            "phases": {
                "coverage": {"enabled": boundaries > 0},
                "fuzzing": {"generation": generation},
                "stateful": {"generation": generation, "max-steps": steps},
            },
            "checks": {
                "positive_data_acceptance": {"expected-statuses": ACCEPTED},
                "negative_data_rejection": {"expected-statuses": REFUSED},
            },
            "operations": [
                {
                    "include-name": name,
                    "checks": {"positive_data_acceptance": {"expected-statuses": [*ACCEPTED, "422"]}},
                }
                for name in (*SOUND, *BY_STUDY, *HALF_SAID)
            ]
            + [
                {"include-name": name, "checks": {"ensure_resource_availability": {"enabled": False}}}
                for name in MADE_LATER
            ],
        }
    )
    schema = schemathesis.openapi.from_asgi(
        "/openapi.json", world.app, config=config, headers={"Authorization": f"Bearer {KEY}"}
    )
    outcome = Outcome()
    sound: set[str] = set()
    submissions: dict[int, int] = {}

    @schema.hook
    def filter_case(context: HookContext, case: Case) -> bool:
        many = case.meta is not None and case.meta.phase.name is TestPhase.COVERAGE
        return not (many and case.operation.label in SOUND) or _fingerprint(case) % boundaries == 0

    @schema.hook
    def map_case(context: HookContext, case: Case) -> Case:
        if _made_likely(case, world, submissions):
            sound.add(case.id)
        return case

    @schema.hook
    def after_call(context: HookContext, case: Case, response: Response) -> None:
        outcome.statuses[case.operation.label, response.status_code] += 1
        if say is not None and outcome.cases % 500 == 0:
            say(f"{outcome.cases:,} requests, {len(outcome.failures)} failures")
        if case.id in sound and response.status_code != 404:
            outcome.sound[case.operation.label, response.status_code] += 1
            # 409: the name is taken, since bodies repeat. 412: another revision was named.
            if response.status_code not in (200, 201, 409, 412):
                outcome.failures.append(
                    f"{case.operation.label} refused a body that it must accept: {response.status_code} "
                    f"{response.text}\n{case.as_curl_command()}"
                )

    for event in from_schema(schema).execute():
        if say is not None and isinstance(event, events.PhaseFinished):
            say(f"{event.phase.name.value}: {outcome.cases:,} requests, {len(outcome.failures)} failures")
        if isinstance(event, events.ScenarioFinished) and event.status is Status.FAILURE:
            outcome.failures += _failures(event)
        elif isinstance(event, events.NonFatalError | events.FatalError):
            outcome.failures.append(str(event))
    return outcome


def _fingerprint(case: Case) -> int:
    """A number that depends on the request alone."""
    parts = (case.operation.label, case.path_parameters, case.query, case.body, case.headers, case.media_type)
    return zlib.crc32(repr(parts).encode(errors="backslashreplace"))


def _made_likely(case: Case, world: World, submissions: dict[int, int]) -> bool:
    """Make most right requests lead to something. Whether its body is now one that must be accepted.

    Depends on the request, so that it can be repeated; of submissions, every third is a plan, the second
    first: by chance alone, a run in which few are generated may ask for no plan at all.

    Args:
        case: is changed.
        world: what can be named.
        submissions: fingerprints of those seen so far and their order; this one is added.
    """
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return False
    number = _fingerprint(case)
    if "idempotency-key" in (case.headers or {}):
        case.headers["idempotency-key"] = f"key-{number}"  # one key with two requests is refused
    if case.headers and not _IF_MATCH.fullmatch(case.headers.get("if-match", "*")):
        # schemathesis makes this header by itself, whatever the schema says, and calls a bare 0 right.
        case.headers["if-match"] = '"1"'
    if number % 4 == 0:
        return False
    # What a chain of requests has just made is not swapped for something else.
    chained = case.meta.phase.name is TestPhase.STATEFUL
    for name in () if chained else case.path_parameters or {}:
        known = world.known(name, beside=case.path_parameters)
        case.path_parameters[name] = known[number // 4 % len(known)]
    if case.operation.label not in SOUND:
        return False
    case.body = SOUND[case.operation.label](number // 4)
    if (
        case.operation.label == "POST /v1/studies"
        and submissions.setdefault(number, len(submissions)) % 3 == 1
    ):
        case.query = {"dry_run": "true"}
    return True


def _failures(event: events.ScenarioFinished) -> list[str]:
    found = []
    for case_id, checks in event.recorder.checks.items():
        for check in checks:
            if check.failure_info is not None:
                failure: Any = check.failure_info.failure
                found.append(
                    f"[{event.phase.value}] {event.label}: {check.name}: {failure.title}: {failure.message}\n"
                    f"{check.failure_info.code_sample}\n"
                    f"{_answer(event, case_id)}"
                )
    return found


def _answer(event: events.ScenarioFinished, case_id: str) -> str:
    response = event.recorder.find_response(case_id=case_id)
    return "no answer" if response is None else f"{response.status_code} {response.text[:500]}"
