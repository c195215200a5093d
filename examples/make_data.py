"""Writes the data of the examples: what people say to a house, once for each task.

    python examples/make_data.py [--out FOLDER]

Standard library only, and the same bytes on every machine. The requests are the quickstart's; no request of
an `eval` file occurs in its `train` file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "quickstart"))

import make_data as quickstart  # noqa: E402 - the quickstart's scripts are no package
import words  # noqa: E402
from words import Dice, clock, spoken_number, spoken_time  # noqa: E402

SEED = 41
TRAIN_ROWS, EVAL_ROWS = 240, 60

Row = dict[str, Any]


def request(dice: Dice) -> tuple[str, dict[str, Any]]:
    """What somebody says, and the action that it asks for."""
    ways, answer = dice.pick(quickstart.ACTIONS)(dice)
    return dice.pick(quickstart.FILLERS) + dice.pick(ways) + dice.pick(quickstart.CLOSINGS), answer


def causal_lm(dice: Dice) -> Row:
    """An alarm, answered with the time of the 24-hour clock behind `####`."""
    time, day = dice.pick(words.TIMES), dice.pick(words.DAYS)
    said = spoken_time(dice, time)
    prompt = dice.pick((f"wake me on {day} at {said}", f"the alarm rings on {day} at {said}"))
    return {"prompt": prompt, "completion": f" {day} #### {clock(time)}"}


def seq2seq_lm(dice: Dice) -> Row:
    """Facts, to be said in a sentence."""
    room, device = dice.pick(words.ROOMS), dice.pick(words.DEVICES + words.LIGHTS)
    name, day, genre = dice.pick(words.NAMES), dice.pick(words.DAYS), dice.pick(words.GENRES)
    state, value = dice.pick(("on", "off")), dice.pick(words.PERCENTS)
    source, target = dice.pick(
        (
            (f"device: {device}, room: {room}, state: {state}", f"turn {state} the {device} in the {room}"),
            (f"device: {device}, room: {room}, value: {value}", f"the {room} {device} is at {value} percent"),
            (f"genre: {genre}, room: {room}", f"play some {genre} in the {room}"),
            (f"name: {name}, room: {room}, day: {day}", f"{name} is in the {room} on {day}"),
        )
    )
    return {"source": source, "target": target}


def sequence_classification(dice: Dice) -> Row:
    """A request, and the name of its action."""
    text, answer = request(dice)
    return {"text": text, "label": answer["action"]}


SLOTS = {"room": "room", "device": "device", "name": "name", "to": "name", "day": "day", "item": "item"}
"""The slots that are marked, and the label of each."""


def token_classification(dice: Dice) -> Row:
    """A request by words, with the rooms, devices, people, days and things in it."""
    text, answer = request(dice)
    tokens = text.split()
    labels = ["O"] * len(tokens)
    for slot, label in SLOTS.items():
        if answer.get(slot) in tokens:
            labels[tokens.index(answer[slot])] = f"B-{label}"
    return {"tokens": tokens, "labels": labels}


def regression(dice: Dice) -> Row:
    """How bright it is to be, from 0 to 1."""
    room, device, value = dice.pick(words.ROOMS), dice.pick(words.LIGHTS), dice.pick(words.PERCENTS)
    said = spoken_number(dice, value)
    ways = (f"the {device} in the {room} at {said} percent", f"dim the {room} {device} to {said} percent")
    return {"text": dice.pick(quickstart.FILLERS) + dice.pick(ways), "score": value / 100}


def ranking(dice: Dice) -> Row:
    """A request, a reply that says what will be done, and one that does not."""
    text, answer = request(dice)
    told = " and ".join(
        f"the {slot} is {value}" for slot, value in answer.items() if slot not in ("action", "to")
    )
    good = f" {dice.pick(('yes', 'ok', 'of course'))}, {told}."
    bad = (
        f" {dice.pick(('no', 'maybe', 'i am busy'))}, {dice.pick(words.FEELINGS)} {dice.pick(words.THINGS)}."
    )
    return {"prompt": text, "chosen": good, "rejected": bad}


def preference(dice: Dice) -> Row:
    """A request, its action, and an action in words."""
    text, answer = request(dice)
    told = " and ".join(f"the {slot} is {value}" for slot, value in answer.items())
    return {"prompt": text, "chosen": " " + json.dumps(answer), "rejected": f" {told}."}


TASKS: tuple[Callable[[Dice], Row], ...] = (
    causal_lm, seq2seq_lm, sequence_classification, token_classification, regression, ranking, preference,
)  # fmt: skip


def make_rows(task: Callable[[Dice], Row]) -> tuple[list[Row], list[Row]]:
    """The train and the eval rows of a task; no input occurs twice."""
    dice = Dice(SEED)
    rows: dict[str, Row] = {}
    while len(rows) < TRAIN_ROWS + EVAL_ROWS:
        row = task(dice)
        rows.setdefault(json.dumps(next(iter(row.values()))), row)
    found = list(rows.values())
    return found[:TRAIN_ROWS], found[TRAIN_ROWS:]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the train and eval data of all examples.")
    parser.add_argument("--out", type=Path, default=HERE)
    out: Path = parser.parse_args().out
    for task in TASKS:
        folder = out / task.__name__
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in zip(("train", "eval"), make_rows(task), strict=True):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
