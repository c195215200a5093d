"""The text that the quickstart's base model is pretrained on: plain English about a home and its office.

Statements, requests, questions, small dialogues, lists, notes in many notations, and facts about numbers
and clocks. No text holds a JSON object, and none answers a request with an action: that is the task the
base has not seen. Most documents repeat what they said before in another form, because a model learns to
copy and to convert, which every answer of the task needs, only from text that does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import words
from words import Dice, clock, spoken_number, spoken_time

SEED = 10

Facts = tuple[tuple[str, str], ...]
"""What a sentence says, as (kind, value) pairs."""


def _title(text: str) -> str:
    return text[:1].upper() + text[1:]


def about_a_device(dice: Dice) -> tuple[str, Facts]:
    device, room, name = (
        dice.pick(words.DEVICES + words.LIGHTS),
        dice.pick(words.ROOMS),
        dice.pick(words.NAMES),
    )
    state, number = dice.pick(("on", "off")), dice.pick(words.PERCENTS)
    said = spoken_number(dice, number)
    with_state = (("device", device), ("room", room), ("state", state))
    with_value = (("device", device), ("room", room), ("value", str(number)))
    return dice.pick(
        (
            (f"the {device} in the {room} is {state}", with_state),
            (f"{name} turned {state} the {device} in the {room}", (*with_state, ("name", name))),
            (f"please switch {state} the {room} {device}", with_state),
            (f"could you turn the {room} {device} {state}", with_state),
            (f"the {room} {device} stays {state} today", with_state),
            (f"the {device} in the {room} is at {said} percent", with_value),
            (f"{name} wants the {room} {device} at {said} percent", (*with_value, ("name", name))),
            (f"can you dim the {device} in the {room} to {said} percent", with_value),
        )
    )


def about_warmth(dice: Dice) -> tuple[str, Facts]:
    room, number, name = dice.pick(words.ROOMS), dice.pick(words.DEGREES), dice.pick(words.NAMES)
    said = spoken_number(dice, number)
    facts = (("room", room), ("value", str(number)))
    return dice.pick(
        (
            (f"it is {said} degrees in the {room}", facts),
            (f"the temperature in the {room} is {said} degrees", facts),
            (f"{name} heats the {room} to {said} degrees", (*facts, ("name", name))),
            (f"please keep the {room} at {said} degrees", facts),
        )
    )


def about_minutes(dice: Dice) -> tuple[str, Facts]:
    dish, number = dice.pick(words.DISHES), dice.pick(words.MINUTES)
    said = spoken_number(dice, number)
    facts = (("name", dish), ("minutes", str(number)))
    return dice.pick(
        (
            (f"the {dish} takes {said} minutes", facts),
            (f"wait {said} minutes for the {dish}", facts),
            (f"a timer for the {dish} rings after {said} minutes", facts),
            (f"the {dish} needs a {said} minute timer", facts),
        )
    )


def about_a_date(dice: Dice) -> tuple[str, Facts]:
    name, day, time = dice.pick(words.NAMES), dice.pick(words.DAYS), dice.pick(words.TIMES)
    said, room = spoken_time(dice, time), dice.pick(words.ROOMS)
    when = (("day", day), ("time", clock(time)))
    return dice.pick(
        (
            (f"{name} comes on {day} at {said}", (("name", name), *when)),
            (f"at {said} on {day} there is a meeting with {name}", (("name", name), *when)),
            (f"the alarm rings on {day} at {said}", when),
            (f"on {day} i wake up at {said}", when),
            (f"{name} is in the {room} on {day} at {said}", (("name", name), ("room", room), *when)),
        )
    )


def about_a_door(dice: Dice) -> tuple[str, Facts]:
    door, time, name = dice.pick(words.DOORS), dice.pick(words.TIMES), dice.pick(words.NAMES)
    said, verb = spoken_time(dice, time), dice.pick(("lock", "unlock", "open", "close"))
    facts = (("door", door), ("time", clock(time)))
    return dice.pick(
        (
            (f"we {verb} the {door} door at {said}", (*facts, ("state", verb))),
            (f"please {verb} the {door} door at {said}", (*facts, ("state", verb))),
            (f"at {said} {name} will {verb} the {door} door", (*facts, ("name", name), ("state", verb))),
            (f"the {door} door was open at {said}", facts),
        )
    )


def about_things(dice: Dice) -> tuple[str, Facts]:
    item, number = dice.pick(words.ITEMS), dice.pick(words.COUNTS)
    target, name = dice.pick(words.LISTS), dice.pick(words.NAMES)
    said = spoken_number(dice, number)
    facts = (("item", item), ("count", str(number)))
    return dice.pick(
        (
            (f"there are {said} {item} on the {target} list", (*facts, ("list", target))),
            (f"the {target} list says {said} {item}", (*facts, ("list", target))),
            (f"{name} bought {said} {item}", (*facts, ("name", name))),
            (f"please bring {said} {item} for {name}", (*facts, ("name", name))),
            (f"{name} has {said} packs of {item}", (*facts, ("name", name))),
        )
    )


def about_a_message(dice: Dice) -> tuple[str, Facts]:
    name, other, note = dice.pick(words.NAMES), dice.pick(words.NAMES), dice.pick(words.NOTES)
    facts = (("to", other), ("text", note))
    return dice.pick(
        (
            (f"{name} wrote to {other} that {note}", (*facts, ("name", name))),
            (f"{name} told {other} {note}", (*facts, ("name", name))),
            (f"a message for {other} says {note}", facts),
            (f"please let {other} know that {note}", facts),
        )
    )


def about_people(dice: Dice) -> tuple[str, Facts]:
    name, room, genre = dice.pick(words.NAMES), dice.pick(words.ROOMS), dice.pick(words.GENRES)
    place = (("name", name), ("room", room))
    return dice.pick(
        (
            (f"{name} is in the {room}", place),
            (f"{name} called from the {room}", place),
            (f"the phone in the {room} rings for {name}", place),
            (f"{name} plays {genre} in the {room}", (*place, ("genre", genre))),
            (f"some {genre} music comes from the {room}", (("genre", genre), ("room", room))),
            (f"i hear {genre} in the {room}", (("genre", genre), ("room", room))),
        )
    )


def about_a_chore(dice: Dice) -> tuple[str, Facts]:
    task, day, name = dice.pick(words.CHORES), dice.pick(words.DAYS), dice.pick(words.NAMES)
    facts = (("task", task), ("day", day))
    return dice.pick(
        (
            (f"{name} has to {task} on {day}", (*facts, ("name", name))),
            (f"on {day} we {task}", facts),
            (f"did you forget to {task} on {day}", facts),
            (f"{day} is a good day to {task}", facts),
            (f"{name} says the best action is to {task}", (("action", task), ("name", name))),
        )
    )


TOPICS: tuple[Callable[[Dice], tuple[str, Facts]], ...] = (
    about_a_device, about_a_device, about_a_device, about_warmth, about_minutes, about_a_date, about_a_date,
    about_a_door, about_things, about_a_message, about_people, about_a_chore,
)  # fmt: skip


def notation(dice: Dice, facts: Facts) -> str:
    """Some of the facts in any order, written down in one of many ways (none of them JSON)."""
    chosen = dice.several(facts, 1 + int(dice.chance(0.8)) + int(dice.chance(0.6)) + int(dice.chance(0.4)))
    style = dice.pick(
        (
            ("", "{0}: {1}", "\n", ""),
            ("", "{0} = {1}", ", ", ""),
            ("(", '{0} "{1}"', ", ", ")"),
            ("[", '"{0}" "{1}"', ", ", "]"),
            ("{", "{0} {1}", "; ", "}"),
            ("", '"{0}", "{1}"', ", ", "."),
            ("", '{0}: "{1}"', ", ", ""),
            ("", "the_{0} is {1}", " and ", "."),
            ("<", "{0} {1}", ", ", ">"),
            ("", "the {0} is {1}", " and ", "."),
        )
    )
    opening, pair, separator, closing = style
    pairs = (pair.format(kind, value) for kind, value in chosen)
    return opening + separator.join(pairs) + closing


def noted(dice: Dice) -> str:
    """A sentence, and what it says in a notation."""
    sentence, facts = dice.pick(TOPICS)(dice)
    opening = dice.pick(("", "", "", "ok ", "so ", "hey ", "um ", "well ", "hi "))
    closing = dice.pick(("", "", "", " today", " thanks", " please", " now", " again"))
    return opening + sentence + closing + dice.pick(("\n", " ", ".\n", " -> ", "")) + notation(dice, facts)


def asked(dice: Dice) -> str:
    """Two sentences and a question about one of them."""
    told = [dice.pick(TOPICS)(dice) for _ in range(2)]
    sentence, facts = dice.pick(told)
    kind, value = dice.pick(facts)
    return f"{_title(told[0][0])}. {_title(told[1][0])}. What {kind}, when {sentence}? {_title(value)}."


def spoken_dialogue(dice: Dice) -> str:
    """One says a thing, and the other repeats it."""
    name, other = dice.several(words.NAMES, 2)
    sentence, _ = dice.pick(TOPICS)(dice)
    answer = dice.pick(("Yes", "No", "I know", "I see", "Really", "Thank you"))
    return f"{_title(name)}: {sentence}\n{_title(other)}: {answer}, {sentence}."


def shopping(dice: Dice) -> str:
    items = dice.several(words.ITEMS, 3)
    counts = [dice.pick(words.COUNTS) for _ in items]
    said = ", ".join(f"{spoken_number(dice, n)} {item}" for n, item in zip(counts, items, strict=True))
    written = "\n".join(f"- {item}: {n}" for n, item in zip(counts, items, strict=True))
    quoted = ", ".join(f'"{item}": {n}' for n, item in zip(counts, items, strict=True))
    return f"{_title(dice.pick(words.LISTS))} list: {said}\n{dice.pick((written, quoted))}"


def numbers(dice: Dice) -> str:
    number = dice.pick(tuple(words.NUMBER_WORDS))
    pairs = dice.several(tuple(words.NUMBER_WORDS.items()), 3)
    return dice.pick(
        (
            f"{_title(words.NUMBER_WORDS[number])} is {number}.",
            " ".join(f"{word}: {digits}." for digits, word in pairs),
            f"{number}, {number + 1}, {number + 2}, {number + 3}",
        )
    )


def clocks(dice: Dice) -> str:
    first, second = dice.several(words.TIMES, 2)
    return dice.pick(
        (
            f"{spoken_time(dice, first)} is {clock(first)}. {spoken_time(dice, second)} is {clock(second)}.",
            f"time: {clock(first)} ({spoken_time(dice, first)})",
            f"The shop closes at {spoken_time(dice, first)}, that is {clock(first)}.",
        )
    )


def feelings(dice: Dice) -> str:
    name, thing = _title(dice.pick(words.NAMES)), f"{dice.pick(words.COLOURS)} {dice.pick(words.THINGS)}"
    feeling = dice.pick(words.FEELINGS)
    return dice.pick(
        (
            f"{name} is {feeling}. Is {name} {feeling}? Yes, {name} is {feeling}.",
            f"{name} has a {thing}. The {thing} is new. Who has the {thing}? {name}.",
        )
    )


def repetitions(dice: Dice) -> str:
    """Random words said twice: the purest lesson in copying."""
    pool = (
        words.NAMES
        + words.ROOMS
        + words.ITEMS
        + words.COLOURS
        + words.THINGS
        + words.DAYS
        + words.OTHER_WORDS
    )
    said = dice.pick((" ", " ", "_")).join(dice.several(pool, 2 + int(dice.chance(0.5)) * 3))
    return dice.pick((f"{said}. Again: {said}.", f'"{said}", and "{said}".', f"{said}\n{said}"))


KINDS: tuple[Callable[[Dice], str], ...] = (
    noted, noted, noted, noted, noted, noted, noted, noted,
    asked, spoken_dialogue, shopping, numbers, clocks, feelings, repetitions,
)  # fmt: skip


def documents(count: int, seed: int = SEED) -> Iterator[str]:
    """`count` short documents, the same ones for the same seed on every machine."""
    dice = Dice(seed)
    for _ in range(count):
        yield dice.pick(KINDS)(dice)
