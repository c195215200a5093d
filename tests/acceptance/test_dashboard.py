"""Optuna dashboard and the API's documentation in a real browser, on the same port as the API."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, sync_playwright

from tests.acceptance.conftest import RunningService

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine; install the package `chromium`"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    options = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
    ]
    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=options)
        yield one
        one.close()


def new_page(browser: Browser, **options: Any) -> Page:
    """A page that waits for as long as the tests themselves may take on a busy machine, not for 30 s."""
    page = browser.new_page(**options)
    page.set_default_timeout(300_000)
    return page


def test_the_dashboard_lists_the_study_its_trials_their_states_and_their_rungs(
    running_service: RunningService, browser: Browser, tmp_path: Path
) -> None:
    """What a person sees at /dashboard. `NIGHTSWEEP_SCREENSHOTS` keeps the pictures."""
    running_service.submit(
        running_service.definition("shown", pruning={"algorithm": "median", "n_startup_trials": 1})
    )
    running_service.wait("shown")
    trials = running_service.trials("shown")
    pictures = Path(os.environ.get("NIGHTSWEEP_SCREENSHOTS", tmp_path))
    page = new_page(
        browser, base_url=str(running_service.client.base_url), viewport={"width": 1400, "height": 1000}
    )
    page.goto("/dashboard")
    page.get_by_text("shown", exact=False).first.wait_for()
    page.screenshot(path=pictures / "studies.png")

    path = running_service.client.get("/v1/studies/shown").json()["dashboard_path"]
    page.goto(f"{path}/trials")
    page.get_by_text("Trial 0", exact=False).first.wait_for()
    text = page.inner_text("body")
    for trial in trials:
        assert f"Trial {trial['number']}" in text
    page.get_by_text("Intermediate Values", exact=False).first.wait_for()
    page.screenshot(path=pictures / "trials.png")

    # What the page draws from: the dashboard's own API, through the same mount.
    number = path.rsplit("/", 1)[1]
    shown = running_service.client.get(f"/api/studies/{number}").json()["trials"]
    expected = {"completed": "Complete", "pruned": "Pruned"}
    assert [one["state"] for one in shown] == [expected[trial["state"]] for trial in trials]
    assert [[v["step"] for v in one["intermediate_values"]] for one in shown] == [
        [rung["rung"] for rung in trial["rungs"]] for trial in trials
    ]


def test_the_documentation_shows_every_operation_with_no_other_host_in_reach(
    running_service: RunningService, browser: Browser, tmp_path: Path
) -> None:
    """What a person sees at /docs. `NIGHTSWEEP_SCREENSHOTS` keeps the picture."""
    pictures = Path(os.environ.get("NIGHTSWEEP_SCREENSHOTS", tmp_path))
    own = str(running_service.client.base_url)
    page = new_page(browser, base_url=own, viewport={"width": 1400, "height": 1000})
    elsewhere: list[str] = []

    def only_here(route: Route) -> None:
        if route.request.url.startswith(own):
            route.continue_()
        else:
            elsewhere.append(route.request.url)
            route.abort()

    page.route("**/*", only_here)
    page.goto("/docs")
    page.locator(".opblock").first.wait_for()
    paths = running_service.client.get("/openapi.json").json()["paths"]
    assert page.locator(".opblock").count() == sum(len(operations) for operations in paths.values())
    page.screenshot(path=pictures / "docs.png")
    assert elsewhere == []


def test_its_pages_hold_the_notes_and_none_of_the_buttons_that_would_be_refused(
    running_service: RunningService, browser: Browser, tmp_path: Path
) -> None:
    running_service.submit(running_service.definition("noted"))
    running_service.wait("noted")
    pictures = Path(os.environ.get("NIGHTSWEEP_SCREENSHOTS", tmp_path))
    page = new_page(
        browser, base_url=str(running_service.client.base_url), viewport={"width": 1400, "height": 1000}
    )
    page.goto("/dashboard")
    page.get_by_text("noted", exact=False).first.wait_for()
    page.get_by_text("read-only").wait_for()
    for refused in ("rename study", "delete study"):
        assert page.get_by_label(refused).first.is_visible() is False
    assert page.get_by_role("button", name="Create").count() == 0
    path = running_service.client.get("/v1/studies/noted").json()["dashboard_path"]
    page.goto(path)
    page.get_by_text("PED-ANOVA needs at least 10").wait_for()
    page.goto(f"{path}/note")
    page.get_by_text("/v1/studies/noted/trials/", exact=False).wait_for()
    page.goto(f"{path}/trials")
    page.get_by_text("lora_alpha_ratio", exact=False).first.wait_for()
    assert page.locator("button:has([data-testid=EditIcon])").first.is_visible() is False
    page.screenshot(path=pictures / "notes.png")


def test_the_dashboard_cannot_change_anything(running_service: RunningService) -> None:
    """It has neither login nor a read-only mode of its own."""
    answer = running_service.client.delete("/api/studies/1")
    assert answer.status_code == 405
    assert answer.headers["content-type"] == "application/problem+json"
