"""Guessers wait, and nobody is locked out by them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from service.access.keys import commands as keys
from service.access.sessions import throttle
from service.db.database import Database, database_now
from service.db.models import LoginFailure
from tests.integration.service.access.conftest import SERVER_KEY
from tests.support.service.access import Browser
from tests.support.service.api import on_sqlite

Open = Callable[..., Browser]


def _later(database: Database, by: timedelta) -> None:
    """As if time had passed: everything that is remembered is older."""

    def shift(session: Session) -> None:
        for row in session.scalars(select(LoginFailure)):
            row.failed_at -= by
            if row.blocked_until is not None:
                row.blocked_until -= by

    database.transact(shift)


def test_an_address_waits_longer_each_time(browser: Open, service_database: Database) -> None:
    guesser = browser()
    answers = [guesser.log_in(f"nsk_{number:08}") for number in range(throttle.FREE + 1)]
    assert [answer.status_code for answer in answers] == [403] * throttle.FREE + [429]
    assert answers[-1].headers["retry-after"] == "2"
    assert guesser.log_in(SERVER_KEY).status_code == 429  # not even looked at
    waits = []
    for _ in range(12):
        _later(service_database, timedelta(seconds=throttle.LONGEST.total_seconds() + 1))
        waits.append(int(guesser.log_in("nsk_other").headers["retry-after"]))
    assert waits[:3] == [4, 8, 16]
    assert waits[-1] == throttle.LONGEST.total_seconds()
    _later(service_database, throttle.LONGEST + timedelta(seconds=1))
    assert guesser.log_in(SERVER_KEY).status_code == 303


def test_nobody_is_locked_out_by_a_guesser(browser: Open, service_database: Database) -> None:
    made = service_database.transact(lambda session: keys.add(session, "alice"))
    for number in range(throttle.FREE_OF_A_PREFIX + 2):  # from everywhere, with the beginning of her key
        browser(f"198.51.100.{number}").log_in(made.key[:8] + "x")
    alice = browser("203.0.113.1")
    bearer = {"authorization": f"Bearer {made.key}"}
    assert alice.http.get("/v1/me", headers=bearer).status_code == 200
    assert alice.log_in(made.key).status_code == 303
    guessers = browser("198.51.100.1").http
    assert guessers.get("/v1/me", headers=bearer).status_code == 200


def test_a_beginning_that_many_have_tried_allows_each_address_one_failure(
    browser: Open, service_database: Database
) -> None:
    for number in range(throttle.FREE_OF_A_PREFIX):
        assert browser(f"198.51.100.{number}").log_in("nsk_aaaa-guess").status_code == 403
    assert browser("203.0.113.1").log_in("nsk_aaaa-guess").status_code == 429
    assert browser("203.0.113.2").log_in("nsk_bbbb-guess").status_code == 403


@on_sqlite
def test_failures_are_forgotten(browser: Open, service_database: Database) -> None:
    guesser = browser()
    for _ in range(throttle.FREE):
        guesser.log_in("nsk_wrong")
    _later(service_database, throttle.FORGOTTEN + timedelta(minutes=1))
    assert guesser.log_in("nsk_wrong").status_code == 403
    with service_database.read() as session:
        assert {row.failures for row in session.scalars(select(LoginFailure))} == {1}


@on_sqlite
def test_a_success_does_not_make_failures_good(browser: Open, service_database: Database) -> None:
    """Else a guesser with a key of their own would never have to wait."""
    made = service_database.transact(lambda session: keys.add(session, "mallory"))
    guesser = browser()
    for _ in range(throttle.FREE):
        assert guesser.log_in("nsk_wrong").status_code == 403
        browser().log_in(made.key)
    assert browser().log_in("nsk_wrong").status_code == 429


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:aaaa::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:bbbb::2", "2001:db8:1:2::/64"),
        ("testclient", "testclient"),
    ],
)
def test_what_one_host_has_is_counted_together(address: str, counted: str) -> None:
    assert throttle.network(address) == counted


@on_sqlite
def test_an_address_that_waits_does_not_wait_for_ever(browser: Open, service_database: Database) -> None:
    """A clock that was set back leaves a time in the future: the wait is bounded all the same."""
    guesser = browser()
    guesser.log_in("nsk_wrong")

    def far(session: Session) -> None:
        until = database_now(session) + timedelta(days=400)
        session.execute(update(LoginFailure).values(blocked_until=until))

    service_database.transact(far)
    assert int(guesser.log_in(SERVER_KEY).headers["retry-after"]) <= throttle.LONGEST.total_seconds()
    assert browser("192.0.2.9").log_in(SERVER_KEY).status_code == 303
