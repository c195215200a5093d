"""The small world of the quickstart: what a household and its office talk about.

Both the pretraining text and the fine-tuning task draw from these lists, so that the base model knows
the words of a request and has still never seen one answered with an action.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

NAMES = (
    "anna", "ben", "carla", "david", "emma", "farid", "grace", "hugo", "ines", "jack",
    "kenji", "laura", "maya", "nora", "omar", "paul", "rosa", "sam", "tara", "victor",
)  # fmt: skip
ROOMS = ("kitchen", "bedroom", "bathroom", "office", "garage", "hallway", "attic", "nursery", "library")
DEVICES = ("fan", "heater", "radio", "kettle", "printer", "oven", "projector", "humidifier", "television")
LIGHTS = ("lights", "lamp", "spotlights", "candles")
DOORS = ("front", "back", "side", "cellar", "garden", "balcony")
GENRES = ("jazz", "rock", "opera", "folk", "piano", "dance", "blues", "reggae")
ITEMS = (
    "milk", "bread", "eggs", "rice", "apples", "tomatoes", "coffee", "butter", "onions", "soap",
    "paper", "batteries", "pens", "lemons", "noodles", "sugar", "flour", "stamps", "towels", "bananas",
)  # fmt: skip
LISTS = ("shopping", "office", "holiday", "party")
DISHES = ("pasta", "soup", "cake", "tea", "pizza", "laundry", "bread", "chicken", "nap", "exam")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
CHORES = (
    "water the plants", "feed the cat", "pay the rent", "clean the windows", "call the bank",
    "take out the bins", "charge the car", "return the books", "iron the shirts", "walk the dog",
    "order the flowers", "sign the contract",
)  # fmt: skip
NOTES = (
    "i am late", "dinner is ready", "the train is delayed", "happy birthday", "the meeting is over",
    "i forgot my keys", "see you soon", "the parcel is here", "we need more time", "i am at home",
    "the car is fixed", "lunch is on me",
)  # fmt: skip
COLOURS = ("red", "blue", "green", "white", "black", "yellow", "brown", "grey")
THINGS = ("cup", "book", "chair", "box", "coat", "key", "plate", "bag", "clock", "table", "picture", "phone")
OTHER_WORDS = (
    "set", "add", "send", "book", "play", "turn", "call", "lock", "unlock", "switch", "remind", "message",
    "brightness", "temperature", "timer", "alarm", "meeting", "reminder", "music",
)  # fmt: skip
FEELINGS = ("happy", "tired", "hungry", "busy", "cold", "warm", "late", "early", "ready", "quiet")

SMALL = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
NUMBER_WORDS = {
    **dict(enumerate(SMALL, start=2)),
    15: "fifteen", 16: "sixteen", 17: "seventeen", 18: "eighteen", 19: "nineteen", 20: "twenty",
    21: "twenty one", 22: "twenty two", 23: "twenty three", 24: "twenty four", 25: "twenty five",
    30: "thirty", 35: "thirty five", 40: "forty", 45: "forty five", 50: "fifty", 60: "sixty",
    70: "seventy", 75: "seventy five", 80: "eighty", 90: "ninety",
}  # fmt: skip
PERCENTS = (10, 15, 20, 25, 30, 35, 40, 45, 50, 60, 70, 75, 80, 90)
DEGREES = (15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25)
MINUTES = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 25, 30, 35, 40, 45, 50)
COUNTS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12)
TIMES = tuple((hour, minute) for hour in range(6, 22) if hour != 12 for minute in (0, 15, 30, 45))


class Dice:
    """Seeded choices that every Python version makes alike.

    `random.Random` promises a stable sequence for `random()` alone, so everything is built on it.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self._random.random() * len(items))]

    def chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def shuffled(self, items: Sequence[T]) -> list[T]:
        keyed = [(self._random.random(), index) for index in range(len(items))]
        return [items[index] for _, index in sorted(keyed)]

    def several(self, items: Sequence[T], count: int) -> list[T]:
        return self.shuffled(items)[:count]


def spoken_number(dice: Dice, number: int) -> str:
    """A number in digits or in words, for example `30` or `thirty`."""
    return NUMBER_WORDS[number] if dice.chance(0.4) else str(number)


def clock(time: tuple[int, int]) -> str:
    """The 24-hour form, for example `19:30`."""
    return f"{time[0]:02d}:{time[1]:02d}"


def spoken_time(dice: Dice, time: tuple[int, int]) -> str:
    """How a person says it, for example `7:30 pm` or `seven thirty in the evening`."""
    hour, minute = time
    twelve = hour - 12 if hour > 12 else hour
    if dice.chance(0.6):
        half = "am" if hour < 12 else "pm"
        return f"{twelve} {half}" if minute == 0 else f"{twelve}:{minute:02d} {half}"
    part = "in the morning" if hour < 12 else "in the afternoon" if hour < 18 else "in the evening"
    words = "one" if twelve == 1 else NUMBER_WORDS[twelve]
    return f"{words} {part}" if minute == 0 else f"{words} {NUMBER_WORDS[minute]} {part}"
