"""Pages in a real browser: they follow a study, are accessible, and work as a file without a network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.acceptance.conftest import RunningService

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine; install the package `chromium`"
)
SLOW: dict[str, Any] = {"budget": {"max_parallel_trials": 1}}
"""One trial after the other, so that there is something to see while it runs."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=options)
        yield one
        one.close()


def open_page(browser: Browser | BrowserContext, **options: Any) -> tuple[Page, list[str]]:
    """A page that waits for as long as the tests may take, and what its policy or script refused."""
    page = browser.new_page(**options)
    page.set_default_timeout(300_000)
    refused: list[str] = []
    page.on("pageerror", lambda error: refused.append(str(error)))
    page.on(
        "console",
        lambda message: refused.append(message.text) if "Content Security Policy" in message.text else None,
    )
    return page, refused


def drawn(page: Page) -> set[str]:
    """The plots that are drawn."""
    found = page.eval_on_selector_all("[data-figure]:has(.main-svg)", "all => all.map(f => f.dataset.figure)")
    return set(found)


def violations(page: Page) -> list[str]:
    """What axe-core finds that is serious or critical."""
    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {each['help']}" for each in found if each["impact"] in ("serious", "critical")]


def test_a_report_follows_its_study_and_keeps_what_its_reader_does(
    running_service: RunningService, browser: Browser
) -> None:
    study = running_service.submit(running_service.definition("followed", **SLOW))
    page, refused = open_page(browser, base_url=str(running_service.client.base_url))
    page.goto("/reports/studies/followed")
    page.evaluate("window.sameDocument = true")
    page.locator("[data-figure=timeline] .main-svg").first.wait_for()
    page.locator("[data-part=attempts] summary").click()
    page.locator("[data-part=attempts] summary").focus()
    page.evaluate("scrollTo(0, document.body.scrollHeight / 2)")
    running_service.wait("followed")
    page.get_by_text("The study has completed: 5 completed.").wait_for()
    page.get_by_text("Nothing of this changes any more.").wait_for()
    assert page.evaluate("window.sameDocument")
    assert page.locator("[data-part=attempts] details").get_attribute("open") is not None
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    assert page.evaluate("scrollY") > 0
    assert page.title().startswith("followed ")
    trials = running_service.trials("followed")
    assert page.locator("[data-part=attempts] tbody tr").count() == len(trials)
    assert {"best-by-examples", "best-by-hours", "curves", "parallel", "timeline"} <= drawn(page)
    assert refused == []
    page.goto("/")
    page.get_by_role("link", name="followed").first.click()
    page.wait_for_url("**/reports/studies/followed")
    assert study["name"] in page.inner_text("h1")
    page.close()


def test_pages_are_accessible_fit_a_phone_and_are_whole_in_a_file(
    running_service: RunningService, browser: Browser, tmp_path: Path
) -> None:
    """`NIGHTSWEEP_SCREENSHOTS` keeps the pictures."""
    running_service.submit(running_service.definition("read"))
    running_service.wait("read")
    pictures = Path(os.environ.get("NIGHTSWEEP_SCREENSHOTS", tmp_path))
    base = str(running_service.client.base_url)
    file = tmp_path / "report.html"
    file.write_bytes(running_service.client.get("/reports/studies/read/file").content)
    for scheme, width in (("light", 1280), ("dark", 375)):
        context = browser.new_context(
            base_url=base, color_scheme=scheme, viewport={"width": width, "height": 900}
        )
        for path in ("/", "/reports/studies/read", "/reports/studies/nothing", file.as_uri()):
            page, refused = open_page(context)
            if path == file.as_uri():
                context.set_offline(True)
            page.goto(path)
            page.locator("h1").wait_for()
            name = path.strip("/").replace("/", "-")[-20:] or "overview"
            page.screenshot(path=pictures / f"page-{name}-{scheme}.png", full_page=True)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path
            assert violations(page) == [], (path, scheme)
            assert refused == [], path
            if "read" in path or path == file.as_uri():
                assert "parallel" in drawn(page)
            page.close()
        context.close()


def test_without_javascript_every_plot_has_its_numbers(
    running_service: RunningService, browser: Browser
) -> None:
    running_service.submit(running_service.definition("plain"))
    running_service.wait("plain")
    page, _ = open_page(browser, base_url=str(running_service.client.base_url), java_script_enabled=False)
    page.goto("/reports/studies/plain")
    page.locator("[data-part=curves] summary").click()
    trials = running_service.trials("plain")
    assert page.locator("[data-part=curves] tbody tr").count() == len(trials)
    assert page.locator("[data-part=curves] .plot").is_visible() is False
    assert "The plot needs JavaScript." in page.inner_text("[data-part=curves]")
    page.close()
