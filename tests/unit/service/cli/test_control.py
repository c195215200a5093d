"""The commands that control a study after its submission."""

from __future__ import annotations

from typing import Any

import httpx

from tests.support.fakes.api import FakeApi, problem, study_json, trial_json

STUDY = "/v1/studies/tone"


def answer(**changes: Any) -> httpx.Response:
    return httpx.Response(200, json=study_json(**changes), headers={"ETag": '"7"'})


def test_tags_are_added_and_removed_with_plus_and_minus(run: Any) -> None:
    replies = {f"GET {STUDY}": answer(tags=["a", "x"]), f"PATCH {STUDY}": answer(tags=["b", "c"])}
    api = FakeApi(replies)
    result = run(api, "tag", "tone", "+b", "-x", "c", "-a")
    assert (result.exit_code, result.output) == (0, "Study tone has the tags b c.\n")
    assert (api.body(), api.requests[-1].headers["If-Match"]) == ({"tags": ["b", "c"]}, '"7"')


def test_a_tag_that_another_person_changed_meanwhile_is_changed_again(run: Any) -> None:
    api = FakeApi(
        {
            f"GET {STUDY}": [answer(tags=[]), answer(tags=["theirs"])],
            f"PATCH {STUDY}": [problem(412, "Changed in between", "it was changed"), answer(tags=["a"])],
        }
    )
    assert run(api, "tag", "tone", "a").exit_code == 0
    assert api.body() == {"tags": ["a", "theirs"]}


def test_a_tag_cannot_be_added_and_removed(run: Any) -> None:
    result = run({}, "tag", "tone", "+a", "-a")
    assert result.exit_code != 0
    assert "a: to be added and to be removed" in result.output


def test_a_note_is_written_and_removed(run: Any) -> None:
    api = FakeApi({f"PATCH {STUDY}": [answer(note="a try"), answer(note=None)]})
    assert run(api, "note", "tone", "a try").output == "Study tone: a try\n"
    assert run(api, "note", "tone", "").output == "Study tone has no note.\n"
    assert api.body() == {"note": ""}


def test_a_trial_is_stopped_with_a_reason(run: Any) -> None:
    stopped = httpx.Response(202, json=trial_json(3, "running", stop_requested=True))
    api = FakeApi({f"POST {STUDY}/trials/3/stop": stopped})
    result = run(api, "stop", "tone", "3", "--reason", "too slow")
    assert result.output == "Trial 3 of tone is being stopped; it is running now.\n"
    assert api.body() == {"reason": "too slow"}
