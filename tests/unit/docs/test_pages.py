"""Every link, anchor and path in the pages leads somewhere, and no page has words of our own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.checkout import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FOLDERS = "search_spaces|workers|service|tests|docs|migrations|benchmarks|examples"
BUILT = {"service/_migrations", "service/_quickstart"}
"""What only a wheel has."""


def anchors(page: Path) -> set[str]:
    """A page's headings as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    words = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {word.replace(" ", "-") for word in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_exists(page: Path) -> None:
    paths = set(re.findall(rf"`((?:{FOLDERS})/[\w./-]*)", page.read_text())) - BUILT
    assert {path for path in paths if not (ROOT / path).exists()} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    present = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert set(re.findall(r"test_\w+\.py", page.read_text())) - present == set()


TEAM_WORDS = re.compile(
    r"\b(crew|fleet|mended|desperate|sat out|stood still|ever more|for ever)\b", re.IGNORECASE
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_has_a_word_of_the_team_s_own(page: Path) -> None:
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    assert TEAM_WORDS.findall(prose) == []
