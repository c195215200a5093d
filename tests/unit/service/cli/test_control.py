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


def recipe(**changes: Any) -> dict[str, Any]:
    known = {"id": 4, "state": "waiting", "params": {"lora_r": 16}, "asked_by": "ada"}
    return {**known, "at": "2026-07-01T22:00:00Z", "trial_number": None, "reason": None, **changes}


def test_parameters_are_enqueued_as_yaml_reads_them(run: Any) -> None:
    api = FakeApi({f"POST {STUDY}/trials": httpx.Response(202, json=recipe())})
    words = ("learning_rate=1e-4", "lora_r=16", "target_modules=[q_proj, v_proj]", "use_rslora=true")
    result = run(api, "enqueue", "tone", *words)
    assert result.output == "Enqueued as number 4: the next trial of tone has lora_r=16.\n"
    params = {"learning_rate": 1e-4, "lora_r": 16, "target_modules": ["q_proj", "v_proj"]}
    assert api.body() == {"params": {**params, "use_rslora": True}}


def test_what_was_enqueued_is_listed(run: Any) -> None:
    found = [recipe(), recipe(id=5, state="dropped", reason="the study ended before it")]
    pages = [httpx.Response(200, json={"items": items}) for items in (found, [])]
    result = run({f"GET {STUDY}/enqueued": pages}, "enqueue", "tone")
    assert "dropped" in result.output
    assert "the study ended before it" in result.output


def test_a_word_that_names_no_value_is_refused(run: Any) -> None:
    for words in (["learning_rate"], ["lora_r="], ["lora_r=4", "lora_r=8"], ["lora_r=[4"]):
        result = run({}, "enqueue", "tone", *words)
        assert result.exit_code != 0
        assert words[0].split("=")[0] in result.output


def test_a_study_is_archived_deleted_and_restored(run: Any) -> None:
    at = "2026-07-08T22:00:00Z"
    replies = {
        f"POST {STUDY}/archive": answer(archived_at=at),
        f"POST {STUDY}/unarchive": answer(),
        f"DELETE {STUDY}": answer(state="completed", deleted_at=at, deleted_by="ada", removal_at=at),
        f"POST {STUDY}/restore": answer(state="completed"),
    }
    said = [run(replies, command, "tone").output for command in ("archive", "unarchive", "delete", "restore")]
    assert said[0] == "Study tone is archived. Show it in lists again: nightsweep unarchive tone\n"
    assert said[1] == "Study tone is not archived.\n"
    assert said[2].startswith("Study tone is deleted. Until 2026-07-08 ")
    assert said[2].endswith("it can be restored: nightsweep restore tone\n")
    assert said[3] == "Study tone is not deleted; it is completed.\n"


def test_archived_and_deleted_studies_are_listed_on_request(run: Any) -> None:
    api = FakeApi({"GET /v1/studies": httpx.Response(200, json={"items": [], "next_cursor": None})})
    for option in ("--archived", "--deleted"):
        assert run(api, "studies", option).output == "No studies match.\n"
    queries = [request.url.params for request in api.requests]
    assert [query.get("archived") for query in queries] == ["true", None]
    assert [query.get("deleted") for query in queries] == [None, "true"]


def test_a_study_is_extended(run: Any) -> None:
    api = FakeApi({f"POST {STUDY}/extend": answer(state="queued", trials_requested=32)})
    result = run(api, "extend", "tone", "--trials", "20", "--timeout", "+2h")
    said = "Study tone is queued, with 32 trials in all. Watch it with: nightsweep watch tone\n"
    assert (result.output, api.body()) == (said, {"trials": "+20", "timeout": "+2h"})
    nothing = run({}, "extend", "tone")
    assert nothing.exit_code != 0
    assert "--max-gpu-hours" in nothing.output
