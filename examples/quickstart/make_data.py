"""Writes the fine-tuning task: spoken requests, each to be answered with one JSON action.

    python make_data.py [--out FOLDER]

Twelve actions, two to four slots each, asked for in several ways and with the fillers people speak.
Standard library only, and the same bytes on every machine. No answer of `eval.jsonl` occurs in
`train.jsonl`: what is evaluated is a new combination of slots, not a remembered row.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import words
from words import Dice, clock, spoken_number, spoken_time

SEED = 20
TRAIN_ROWS = 600
EVAL_ROWS = 120
EVAL_SHARE = 0.2
"""Share of the distinct answers that are set aside for evaluation."""

FILLERS = ("", "", "", "hey ", "um ", "ok so ", "hi there ")
OPENINGS = (
    *FILLERS, "please ", "could you ", "can you ", "would you please ", "i need you to ", "quickly ",
    "could you please ",
)  # fmt: skip
CLOSINGS = ("", "", "", "", " please", " thanks", " thank you", " when you can", " right now", " for me")

Answer = dict[str, Any]
Request = tuple[tuple[str, ...], Answer]
"""The ways to say it, and the answer."""


def set_brightness(dice: Dice) -> Request:
    room, device, value = dice.pick(words.ROOMS), dice.pick(words.LIGHTS), dice.pick(words.PERCENTS)
    said = spoken_number(dice, value)
    return (
        f"dim the {room} {device} to {said} percent",
        f"set the {device} in the {room} to {said} percent",
        f"bring the {room} {device} to {said} percent brightness",
        f"make the {device} in the {room} {said} percent bright",
    ), {"action": "set_brightness", "device": device, "room": room, "value": value}


def set_temperature(dice: Dice) -> Request:
    room, value = dice.pick(words.ROOMS), dice.pick(words.DEGREES)
    said = spoken_number(dice, value)
    return (
        f"set the {room} to {said} degrees",
        f"heat the {room} to {said} degrees",
        f"make it {said} degrees in the {room}",
        f"change the temperature in the {room} to {said}",
    ), {"action": "set_temperature", "room": room, "value": value}


def switch(dice: Dice) -> Request:
    room, device = dice.pick(words.ROOMS), dice.pick(words.DEVICES + words.LIGHTS)
    state = dice.pick(("on", "off"))
    return (
        f"turn {state} the {device} in the {room}",
        f"switch the {room} {device} {state}",
        f"turn the {device} in the {room} {state}",
        f"power {state} the {room} {device}",
    ), {"action": f"turn_{state}", "device": device, "room": room}


def set_timer(dice: Dice) -> Request:
    minutes, name = dice.pick(words.MINUTES), dice.pick(words.DISHES)
    said = spoken_number(dice, minutes)
    return (
        f"set a timer for {said} minutes for the {name}",
        f"start a {said} minute timer for the {name}",
        f"time the {name} for {said} minutes",
        f"give the {name} {said} minutes",
    ), {"action": "set_timer", "name": name, "minutes": minutes}


def set_alarm(dice: Dice) -> Request:
    time, day = dice.pick(words.TIMES), dice.pick(words.DAYS)
    said = spoken_time(dice, time)
    return (
        f"wake me on {day} at {said}",
        f"set an alarm for {said} on {day}",
        f"i want to get up at {said} on {day}",
    ), {"action": "set_alarm", "day": day, "time": clock(time)}


def book_meeting(dice: Dice) -> Request:
    name, day, time = dice.pick(words.NAMES), dice.pick(words.DAYS), dice.pick(words.TIMES)
    said = spoken_time(dice, time)
    return (
        f"book a meeting with {name} on {day} at {said}",
        f"meet {name} at {said} on {day}",
        f"put {name} in my calendar for {day} at {said}",
        f"schedule a talk with {name} at {said} on {day}",
    ), {"action": "book_meeting", "name": name, "day": day, "time": clock(time)}


def add_item(dice: Dice) -> Request:
    item, count, target = dice.pick(words.ITEMS), dice.pick(words.COUNTS), dice.pick(words.LISTS)
    said = spoken_number(dice, count)
    return (
        f"add {said} {item} to the {target} list",
        f"put {said} {item} on my {target} list",
        f"we need {said} {item} on the {target} list",
        f"note {said} packs of {item} on the {target} list",
    ), {"action": "add_item", "item": item, "count": count, "list": target}


def send_message(dice: Dice) -> Request:
    name, text = dice.pick(words.NAMES), dice.pick(words.NOTES)
    return (
        f"tell {name} {text}",
        f"send {name} a message saying {text}",
        f"write to {name} that {text}",
        f"let {name} know {text}",
    ), {"action": "send_message", "to": name, "text": text}


def call_person(dice: Dice) -> Request:
    name, room = dice.pick(words.NAMES), dice.pick(words.ROOMS)
    return (
        f"call {name} from the {room}",
        f"get {name} on the phone in the {room}",
        f"ring {name} on the {room} phone",
    ), {"action": "call", "name": name, "room": room}


def play_music(dice: Dice) -> Request:
    genre, room = dice.pick(words.GENRES), dice.pick(words.ROOMS)
    return (
        f"play some {genre} in the {room}",
        f"put on {genre} music in the {room}",
        f"i would like to hear {genre} in the {room}",
        f"start the {genre} playlist in the {room}",
    ), {"action": "play_music", "genre": genre, "room": room}


def lock_door(dice: Dice) -> Request:
    door, time, state = dice.pick(words.DOORS), dice.pick(words.TIMES), dice.pick(("lock", "unlock"))
    said = spoken_time(dice, time)
    return (
        f"{state} the {door} door at {said}",
        f"at {said} {state} the {door} door",
        f"make sure to {state} the {door} door at {said}",
    ), {"action": state, "door": door, "time": clock(time)}


def add_reminder(dice: Dice) -> Request:
    task, day = dice.pick(words.CHORES), dice.pick(words.DAYS)
    return (
        f"remind me to {task} on {day}",
        f"on {day} remind me to {task}",
        f"i have to {task} on {day} so remind me",
        f"do not let me forget to {task} on {day}",
    ), {"action": "add_reminder", "task": task, "day": day}


ACTIONS: tuple[Callable[[Dice], Request], ...] = (
    set_brightness, set_temperature, switch, set_timer, set_alarm, book_meeting, add_item, send_message,
    call_person, play_music, lock_door, add_reminder,
)  # fmt: skip


def make_rows(seed: int = SEED) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The training and the evaluation rows, each `{"prompt": ..., "completion": ...}`.

    The first time an answer comes up, the dice decide which file it belongs to, and it stays there.
    """
    dice = Dice(seed)
    train: list[dict[str, str]] = []
    held_out: list[dict[str, str]] = []
    is_held_out: dict[str, bool] = {}
    prompts: set[str] = set()
    turn = 0
    while len(train) < TRAIN_ROWS or len(held_out) < EVAL_ROWS:
        ways, answer = ACTIONS[turn % len(ACTIONS)](dice)
        turn += 1
        way = dice.pick(ways)
        # "could you we need" is not English: a statement takes a filler only.
        openings = FILLERS if way.startswith(("i ", "we ", "on ", "at ")) else OPENINGS
        prompt = dice.pick(openings) + way + dice.pick(CLOSINGS)
        completion = json.dumps(answer)
        evaluation = is_held_out.setdefault(completion, dice.chance(EVAL_SHARE))
        rows, wanted = (held_out, EVAL_ROWS) if evaluation else (train, TRAIN_ROWS)
        if len(rows) < wanted and prompt not in prompts:
            prompts.add(prompt)
            rows.append({"prompt": prompt, "completion": completion})
    return dice.shuffled(train), dice.shuffled(held_out)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write train.jsonl and eval.jsonl.")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(("train", "eval"), make_rows(), strict=True):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (out / f"{name}.jsonl").write_text(lines, encoding="utf-8", newline="\n")
        print(f"{out / name}.jsonl: {len(rows)} rows")


if __name__ == "__main__":
    main()
