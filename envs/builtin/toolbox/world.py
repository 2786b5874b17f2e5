"""Defines the offline world of `toolbox`: seven small apps, their functions with signatures and docs, a generated state.

A call is text: `app.function(argument,argument)`. It is matched by one regular expression and looked up in API; nothing is
ever evaluated. A call has no effect outside the state:

    World   app -> entry -> value      {"bank": {"balance": 83, "owe ann": 12}, "todo": {"milk": "open"}, ...}

so that two ways to the same state are equal, and everything a policy changed shows in a comparison of two states.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

World = dict[str, dict[str, int | str]]

NAMES = ("ann", "bob", "cid", "dan", "eva", "fay", "gus", "hal", "ida", "jon", "kim", "leo")
ITEMS = ("pen", "cup", "hat", "bag", "mug", "tea", "jam", "box", "oil", "map", "bun", "fig", "key", "fan")
EVENTS = ("gym", "call", "lunch", "demo", "trip", "class", "visit", "talk")
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
WORDS = ("hello", "thanks", "sorry", "yes", "no", "soon", "later", "ready", "done", "wait")
TITLES = ("rent", "plan", "idea", "code", "size", "goal", "rule", "fact")
HOURS = (8, 19)

MAX_CALL = 200  # characters of a call
_CALL = re.compile(r"([a-z]{1,12}(?:\.[a-z]{1,12})?)\(([a-z0-9 .,]{0,80})\)")
_NUMBER = re.compile(r"[1-9][0-9]{0,4}")
_TEXT = re.compile(r"[a-z0-9](?:[a-z0-9 ]{0,22}[a-z0-9])?")


class CallError(Exception):
    """Reports a call that failed and changed nothing; the message is the observation."""


@dataclass(frozen=True, slots=True)
class Call:
    """Holds a parsed call. Example: `bank.pay(ann,30)` is Call("bank.pay", ("ann", "30"))."""

    function: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.function}({','.join(self.arguments)})"


def parse(text: str) -> Call:
    """Parses a call; spaces around it and around its commas are ignored. Raises CallError for anything else."""
    if len(text) > MAX_CALL:
        raise CallError(f"a call has at most {MAX_CALL} characters")
    match = _CALL.fullmatch(text.strip(" \n"))
    if match is None:
        raise CallError("not a call like app.function(argument)")
    function, inside = match.groups()
    return Call(function, tuple(part.strip(" ") for part in inside.split(",")) if inside.strip(" ") else ())


@dataclass(frozen=True, slots=True)
class Function:
    """Describes a function of an app.

    run        takes the world and the arguments, numbers as int; returns the observation, None for "ok"
    signature  name and type of each argument
    """

    run: Callable[..., str | None]
    signature: tuple[tuple[str, type], ...]
    doc: str


def _read(world: World, app: str, entry: str, what: str) -> int | str:
    if entry not in world[app]:
        raise CallError(f"no {what}")
    return world[app][entry]


def _add(world: World, app: str, entry: str, amount: int) -> None:
    """Adds to a number. An entry that returns to 0 is removed: the state must not show how it was reached."""
    value = int(world[app].get(entry, 0)) + amount
    if value or entry == "balance":
        world[app][entry] = value
    else:
        world[app].pop(entry, None)


def _listed(parts: list[str]) -> str:
    return ", ".join(parts) or "none"


def _new(world: World, app: str, entry: str, value: int | str) -> None:
    if entry in world[app]:
        raise CallError(f"{entry} is there already")
    world[app][entry] = value


def _remove(world: World, app: str, entry: str, what: str) -> None:
    _read(world, app, entry, what)
    del world[app][entry]


def _spend(world: World, amount: int) -> None:
    if amount > int(world["bank"]["balance"]):
        raise CallError("balance too low")
    world["bank"]["balance"] = int(world["bank"]["balance"]) - amount


def _pay(world: World, name: str, amount: int) -> None:
    _read(world, "contacts", name, "such contact")
    _spend(world, amount)
    owed = int(world["bank"].get(f"owe {name}", 0))
    _add(world, "bank", f"owe {name}", -min(owed, amount))
    _add(world, "bank", f"paid {name}", amount)


def _debts(world: World) -> str:
    return _listed([f"{entry[4:]} {value}" for entry, value in world["bank"].items() if entry.startswith("owe ")])


def _buy(world: World, item: str, count: int) -> None:
    price, stock = int(_read(world, "shop", f"price {item}", "such item")), int(world["shop"].get(f"stock {item}", 0))
    if count > stock:
        raise CallError("not in stock")
    _spend(world, price * count)
    _add(world, "shop", f"stock {item}", -count)
    _add(world, "shop", f"bought {item}", count)


def _stock(world: World, item: str) -> str:
    _read(world, "shop", f"price {item}", "such item")
    return str(world["shop"].get(f"stock {item}", 0))


def _send(world: World, name: str, text: str) -> None:
    _read(world, "contacts", name, "such contact")
    _add(world, "mail", f"sent {name} {text}", 1)


def _inbox(world: World) -> str:
    return _listed([entry[5:] for entry in world["mail"] if entry.startswith("from ")])


def _tick(world: World, item: str) -> None:
    if _read(world, "todo", item, "such item") != "open":
        raise CallError(f"{item} is done already")
    world["todo"][item] = "done"


def _day(world: World, day: str) -> str:
    return _listed(
        [f"{entry[4:]} {event}" for entry, event in world["calendar"].items() if entry.startswith(f"{day} ")]
    )


def _book(world: World, day: str, hour: int, event: str) -> None:
    if day not in DAYS:
        raise CallError(f"no such day, there are {' '.join(DAYS)}")
    if not HOURS[0] <= hour <= HOURS[1]:
        raise CallError(f"hours go from {HOURS[0]} to {HOURS[1]}")
    _new(world, "calendar", f"{day} {hour}", event)


_NAME, _AMOUNT, _ITEM, _COUNT = ("name", str), ("amount", int), ("item", str), ("count", int)
_TITLE, _WORDS, _DAY, _HOUR, _EVENT = ("title", str), ("text", str), ("day", str), ("hour", int), ("event", str)

API: dict[str, Function] = {
    "contacts.list": Function(lambda w: _listed(list(w["contacts"])), (), "all names"),
    "contacts.phone": Function(
        lambda w, name: str(_read(w, "contacts", name, "such contact")), (_NAME,), "the number of a contact"
    ),
    "contacts.add": Function(
        lambda w, name, phone: _new(w, "contacts", name, phone), (_NAME, ("phone", int)), "a new contact"
    ),
    "contacts.remove": Function(lambda w, name: _remove(w, "contacts", name, "such contact"), (_NAME,), "forget one"),
    "bank.balance": Function(lambda w: str(w["bank"]["balance"]), (), "your money"),
    "bank.owed": Function(lambda w, name: str(w["bank"].get(f"owe {name}", 0)), (_NAME,), "what you owe a contact"),
    "bank.debts": Function(_debts, (), "everyone you owe, with amounts"),
    "bank.pay": Function(_pay, (_NAME, _AMOUNT), "pay a contact"),
    "shop.price": Function(lambda w, item: str(_read(w, "shop", f"price {item}", "such item")), (_ITEM,), "of one"),
    "shop.stock": Function(_stock, (_ITEM,), "how many there are"),
    "shop.buy": Function(_buy, (_ITEM, _COUNT), "buy some, paid by the bank"),
    "mail.send": Function(_send, (_NAME, _WORDS), "write to a contact"),
    "mail.inbox": Function(_inbox, (), "who wrote to you"),
    "mail.read": Function(lambda w, name: str(_read(w, "mail", f"from {name}", "such mail")), (_NAME,), "their mail"),
    "mail.remove": Function(lambda w, name: _remove(w, "mail", f"from {name}", "such mail"), (_NAME,), "their mail"),
    "notes.list": Function(lambda w: _listed(list(w["notes"])), (), "all titles"),
    "notes.read": Function(
        lambda w, title: str(_read(w, "notes", title, "such note")), (_TITLE,), "the text of a note"
    ),
    "notes.write": Function(
        lambda w, title, text: w["notes"].__setitem__(title, text), (_TITLE, _WORDS), "write or replace a note"
    ),
    "notes.remove": Function(lambda w, title: _remove(w, "notes", title, "such note"), (_TITLE,), "throw one away"),
    "todo.list": Function(
        lambda w: _listed([item for item, state in w["todo"].items() if state == "open"]), (), "all open items"
    ),
    "todo.add": Function(lambda w, item: _new(w, "todo", item, "open"), (_ITEM,), "a new item"),
    "todo.done": Function(_tick, (_ITEM,), "tick an item off"),
    "calendar.day": Function(_day, (_DAY,), "hours and events of a day"),
    "calendar.add": Function(_book, (_DAY, _HOUR, _EVENT), "book a free hour"),
    "calendar.remove": Function(
        lambda w, day, hour: _remove(w, "calendar", f"{day} {hour}", "such event"), (_DAY, _HOUR), "free an hour"
    ),
}
APPS = tuple(dict.fromkeys(name.partition(".")[0] for name in API))


def signature(name: str) -> str:
    """Returns one line of documentation, such as "bank.pay(name,amount): pay a contact"."""
    function = API[name]
    return f"{name}({','.join(argument for argument, _ in function.signature)}): {function.doc}"


def manual(app: str | None = None) -> str:
    """Returns the documentation of one app, or of all, one function a line."""
    return "\n".join(signature(name) for name in API if app is None or name.startswith(f"{app}."))


def help_on(arguments: tuple[str, ...]) -> str:
    """Returns the observation of `help()`, `help(bank)` and `help(bank.pay)`."""
    if not arguments:
        return f"apps: {' '.join(APPS)}. help(app) lists one. end with finish() or answer(text)"
    (topic,) = arguments if len(arguments) == 1 else ("",)
    if topic in API:
        return signature(topic)
    if topic in APPS:
        return manual(topic)
    raise CallError("help takes nothing, an app or a function")


def run(world: World, call: Call) -> str:
    """Makes the call, changing the world in place, and returns the observation.

    Raises CallError, with the world unchanged, for a call that is not possible.
    """
    function = API.get(call.function)
    if function is None:
        raise CallError(f"no such function {call.function}")
    if len(call.arguments) != len(function.signature):
        raise CallError(f"{call.function} takes {len(function.signature)} arguments")
    values = [_value(text, *parameter) for text, parameter in zip(call.arguments, function.signature, strict=True)]
    answer = function.run(world, *values)
    return "ok" if answer is None else answer


def _value(text: str, name: str, kind: type) -> int | str:
    if kind is int:
        if not _NUMBER.fullmatch(text):
            raise CallError(f"{name} must be a number from 1 to 99999")
        return int(text)
    if not _TEXT.fullmatch(text):
        raise CallError(f"{name} must be 1 to 24 letters, digits and spaces")
    return text


def generate(seed: str) -> World:
    """Returns a state that is a pure function of the seed, its entries in random order."""
    rng = random.Random(seed)
    names = rng.sample(NAMES, 6)
    debts = rng.sample(names, 3)
    return {
        "contacts": {name: rng.randint(10, 99) for name in names},
        "bank": {"balance": rng.randint(300, 900), **{f"owe {name}": rng.randint(2, 40) for name in debts}},
        "shop": {
            entry: value
            for item in ITEMS
            for entry, value in ((f"price {item}", rng.randint(2, 20)), (f"stock {item}", rng.choice((0, 9, 9))))
            if value
        },
        "mail": {f"from {name}": rng.choice(WORDS) for name in rng.sample(names, 3)},
        "notes": {title: str(rng.randint(10, 99)) for title in rng.sample(TITLES, 3)},
        "todo": dict.fromkeys((f"{item} {rng.choice(DAYS)}" for item in rng.sample(ITEMS, 4)), "open"),
        "calendar": {
            f"{day} {hour}": rng.choice(EVENTS)
            for day in rng.sample(DAYS, 3)
            for hour in sorted(rng.sample(range(HOURS[0], HOURS[1] + 1), 2))
        },
    }


def copy(world: World) -> World:
    """Returns an independent copy of the world."""
    return {app: dict(entries) for app, entries in world.items()}


def difference(before: World, after: World) -> dict[str, tuple[int | str | None, int | str | None]]:
    """Returns every entry that differs, as "app: entry" -> (value before, value after); None stands for a missing entry."""
    return {
        f"{app}: {entry}": (before[app].get(entry), after[app].get(entry))
        for app in before
        for entry in sorted({*before[app], *after[app]})
        if before[app].get(entry) != after[app].get(entry)
    }
