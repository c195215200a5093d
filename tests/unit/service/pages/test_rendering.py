"""Templates: nothing that comes from elsewhere is read as HTML, and a file loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from datetime import UTC, datetime

import yaml

from search_spaces.parsing.document import parse_definition
from service.errors import NotFound
from service.pages import rendering
from service.pages.assets import address, asset
from service.pages.parts import part
from service.pages.recipes import recipe_yaml
from service.wording.report_sections import Grid, Point
from service.wording.values import difference, in_words

FOREIGN = '</script><img src=x onerror="alert(1)">`nightsweep serve`'


def test_foreign_text_is_shown_as_it_is() -> None:
    assert rendering.prose(FOREIGN) == (
        "&lt;/script&gt;&lt;img src=x onerror=&#34;alert(1)&#34;&gt;<code>nightsweep serve</code>"
    )
    assert rendering.state(FOREIGN).count("<") == 4  # its own two elements
    page = rendering.page("error.html.j2", 404, error=NotFound(FOREIGN))
    assert b"<img" not in bytes(page.body)


def test_a_plots_data_cannot_end_its_element() -> None:
    text = rendering.plot({"text": FOREIGN, "y": [1.5, None]})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"text": FOREIGN, "y": [1.5, None]}


def test_a_file_has_a_policy_that_runs_its_own_two_scripts_alone() -> None:
    html = rendering.whole_file("error.html.j2", error=NotFound("nothing"))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    allowed = re.findall(r"sha256-([^&']+)", policy[1])
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts] == allowed[::-1]
    assert policy[1].startswith("default-src &#39;none&#39;")
    assert "unsafe-eval" not in policy[1]


def test_addresses_change_with_the_files() -> None:
    css = asset("pages.css")
    assert address("pages.css") == f"/pages/{css.digest}/pages.css"
    assert css.digest == hashlib.sha256(css.content).hexdigest()[:16]
    assert asset("plotly.min.js").text.startswith("/**\n* plotly.js v")


def test_no_asset_ends_the_element_that_it_is_written_into() -> None:
    assert "</script" not in asset("plotly.min.js").text.lower()
    assert "</script" not in asset("pages.js").text.lower()
    assert "</style" not in asset("pages.css").text.lower()


def test_the_text_on_both_backgrounds_has_enough_contrast() -> None:
    """WCAG AA: 4.5 to 1 for text, 3 to 1 for what is drawn."""
    light, dark = (_colours(place) for place in (0, 1))
    for colours in (light, dark):
        for name in ("ink", "quiet", "link", "completed", "running", "failed", "pruned"):
            assert min(_contrast(colours[name], colours[b]) for b in ("paper", "raised")) >= 4.5, name
        for name in ("best", "diverged", "lost", "cancelled", "muted", "focus"):
            assert _contrast(colours[name], colours["paper"]) >= 3, name


def _colours(place: int) -> dict[str, str]:
    blocks = re.findall(r":root[^{]*\{([^}]*)\}", asset("pages.css").text)
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", blocks[place]))


def _contrast(first: str, second: str) -> float:
    lights = sorted((_luminance(first), _luminance(second)))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_points_that_follow_one_another_are_one_list() -> None:
    table = Grid(columns=("a",), rows=[(1,)])
    one, two, three = (Point(text=text) for text in "abc")
    made = part("k", "T", ["sentence", one, two, table, three], [None])
    assert made is not None
    assert made.blocks == ["sentence", [one, two], table, [three]]
    assert part("k", "T", [], [None]) is None


def test_the_best_recipe_is_one_that_a_definition_takes() -> None:
    document = {
        "name": "a",
        "model": {"id": "org/model"},
        "data": {"train": "/t.jsonl", "eval": "/e.jsonl"},
        "search": {
            "algorithm": "random",
            "trials": 1,
            "space": {"learning_rate": {"min": 1e-5, "max": 1e-3}},
        },
        "recipe": {"target_modules": ["q_proj", "v_proj"], "lora_r": 4},
    }
    accepted = parse_definition(document).model_dump(mode="json")
    text = recipe_yaml(
        accepted, {"learning_rate": 1.2345678901234567e-05, "quantization": "int8", "epochs": 2}
    )
    recipe = yaml.safe_load(text)["recipe"]
    assert recipe["learning_rate"] == 1.2345678901234567e-05
    again = document | {"recipe": recipe}
    again["search"] = {
        "algorithm": "random",
        "trials": 1,
        "space": {"lora_dropout": {"min": 0.0, "max": 0.1}},
    }
    assert parse_definition(again).recipe.items() >= {"lora_r": 4, "quantization": "int8"}.items()


def test_times_have_their_zone() -> None:
    at = datetime(2026, 11, 30, 23, 5, 9, tzinfo=UTC)
    assert in_words(at) == "30 Nov 2026, 23:05:09 UTC"
    assert in_words(at, "Europe/Berlin") == "1 Dec 2026, 00:05:09 Europe/Berlin"
    assert rendering.time(at, "Europe/Berlin").startswith('<time datetime="2026-11-30T23:05:09+00:00">1 Dec')
    assert rendering.time(None) == "-"


def test_differences_of_errors_are_shares_and_others_are_not() -> None:
    assert difference(0.9, 1.0, maximizes=False) == "10.0% lower"
    assert difference(0.9, 0.8, maximizes=True) == "0.1 higher"
    assert difference(-1.0, 1.0, maximizes=False) == "2 lower"
