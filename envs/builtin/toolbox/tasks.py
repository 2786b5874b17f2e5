"""Defines the task templates of `toolbox`, each with the calls that solve it.

| level | what it takes                          | templates                                                                   |
|-------|----------------------------------------|-----------------------------------------------------------------------------|
| 1     | one call, or two                       | pay, pay_two, mail, note, todo, tick, buy, book, contact, phone, price      |
| 2     | look something up, then act on it      | settle, share_phone, note_price, pay_note, pass_on, move, cost              |
| 3     | several apps and a loop or a condition | settle_all, mail_all, clear_day, stock_up, pay_or_say, tick_all, cheapest   |

Templates have enough slots that most words of a held-out task were seen in training, in other combinations. Slots are drawn
from a world that already exists, so that the task can be done in it; a draw that makes no task raises Impossible, and the
environment draws again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from envs.builtin.toolbox.world import DAYS, EVENTS, HOURS, ITEMS, NAMES, TITLES, WORDS, World


class Impossible(Exception):
    """Reports that the drawn slots make no task in this world; the caller draws again."""


@dataclass(frozen=True, slots=True)
class Task:
    """Holds what is asked, and the ways to do it.

    text     the prompt
    actions  calls that change the state to what was asked for, in any order
    lookups  what has to be looked up first, in any order; for each, all calls that give it
    answer   argument that answer(..) must have; None: the episode ends with finish()
    Example: Task("phone of ann?", (), (("contacts.phone(ann)",),), "417")
    """

    text: str
    actions: tuple[str, ...] = ()
    lookups: tuple[tuple[str, ...], ...] = ()
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class Template:
    """Makes a task of one kind in a given world; `apps` are those the task needs."""

    level: int
    apps: frozenset[str]
    make: Callable[[random.Random, World], Task]


def _names(rng: random.Random, world: World, count: int) -> list[str]:
    return rng.sample(sorted(world["contacts"].keys() & set(NAMES)), count)


def _owing(rng: random.Random, world: World) -> str:
    return rng.choice(sorted(entry[4:] for entry in world["bank"] if entry.startswith("owe ")))


def _open(world: World) -> list[str]:
    return sorted(item for item, state in world["todo"].items() if state == "open")


def _price(world: World, item: str) -> int:
    return int(world["shop"][f"price {item}"])


def _slot(rng: random.Random) -> tuple[str, int]:
    return rng.choice(DAYS), rng.randint(*HOURS)


# Ways to end a question. With a single one, each kind of question would have only a dozen texts: the one or two held out would
# ask for words that are never asked for in training, and the others would teach their own answers instead of copying.
ENDINGS = ("?", ", please", ", now", " again?")


# --- level 1 -----------------------------------------------------------------------------------------------------------


def _pay(rng: random.Random, world: World) -> Task:
    (name,), amount = _names(rng, world, 1), rng.randint(2, 9)
    return Task(f"pay {name} {amount}", (f"bank.pay({name},{amount})",))


def _pay_two(rng: random.Random, world: World) -> Task:
    (a, b), x, y = _names(rng, world, 2), rng.randint(2, 9), rng.randint(2, 9)
    return Task(f"pay {a} {x} and {b} {y}", (f"bank.pay({a},{x})", f"bank.pay({b},{y})"))


def _mail(rng: random.Random, world: World) -> Task:
    (name,), word = _names(rng, world, 1), rng.choice(WORDS)
    return Task(f"mail {name} {word}", (f"mail.send({name},{word})",))


def _note(rng: random.Random, world: World) -> Task:
    title, text = rng.choice(TITLES), rng.randint(2, 9)
    return Task(f"note {title} {text}", (f"notes.write({title},{text})",))


def _todo(rng: random.Random, world: World) -> Task:
    item = f"{rng.choice(ITEMS)} {rng.choice(DAYS)}"
    return Task(f"todo {item}", (f"todo.add({item})",))


def _tick(rng: random.Random, world: World) -> Task:
    item = rng.choice(_open(world))
    return Task(f"tick {item}", (f"todo.done({item})",))


def _buy(rng: random.Random, world: World) -> Task:
    item, count = rng.choice(ITEMS), rng.randint(1, 5)
    return Task(f"buy {count} {item}", (f"shop.buy({item},{count})",))


def _book(rng: random.Random, world: World) -> Task:
    (day, hour), event = _slot(rng), rng.choice(EVENTS)
    return Task(f"book {event} {day} {hour}", (f"calendar.add({day},{hour},{event})",))


def _contact(rng: random.Random, world: World) -> Task:
    name, phone = rng.choice(NAMES), rng.randint(10, 99)
    return Task(f"contact {name} {phone}", (f"contacts.add({name},{phone})",))


def _phone(rng: random.Random, world: World) -> Task:
    (name,) = _names(rng, world, 1)
    return Task(
        f"phone of {name}{rng.choice(ENDINGS)}", (), ((f"contacts.phone({name})",),), str(world["contacts"][name])
    )


def _price_of(rng: random.Random, world: World) -> Task:
    item = rng.choice(ITEMS)
    return Task(f"price of {item}{rng.choice(ENDINGS)}", (), ((f"shop.price({item})",),), str(_price(world, item)))


# --- level 2 -----------------------------------------------------------------------------------------------------------


def _settle(rng: random.Random, world: World) -> Task:
    name = _owing(rng, world)
    pay = f"bank.pay({name},{world['bank'][f'owe {name}']})"
    return Task(f"pay {name} what i owe", (pay,), ((f"bank.owed({name})", "bank.debts()"),))


def _share_phone(rng: random.Random, world: World) -> Task:
    a, b = _names(rng, world, 2)
    send = f"mail.send({a},{world['contacts'][b]})"
    return Task(f"mail {a} the phone of {b}", (send,), ((f"contacts.phone({b})",),))


def _note_price(rng: random.Random, world: World) -> Task:
    item, title = rng.choice(ITEMS), rng.choice(TITLES)
    write = f"notes.write({title},{_price(world, item)})"
    return Task(f"note the price of {item} as {title}", (write,), ((f"shop.price({item})",),))


def _pay_note(rng: random.Random, world: World) -> Task:
    (name,), title = _names(rng, world, 1), rng.choice(sorted(world["notes"]))
    pay = f"bank.pay({name},{world['notes'][title]})"
    return Task(f"pay {name} the amount in note {title}", (pay,), ((f"notes.read({title})",),))


def _pass_on(rng: random.Random, world: World) -> Task:
    writer = rng.choice(sorted(world["mail"])).removeprefix("from ")
    (name,) = _names(rng, world, 1)
    if name == writer:
        raise Impossible
    send = f"mail.send({name},{world['mail'][f'from {writer}']})"
    return Task(f"send {name} the mail of {writer}", (send,), ((f"mail.read({writer})",),))


def _move(rng: random.Random, world: World) -> Task:
    old, event = rng.choice(sorted(world["calendar"].items()))
    day, hour = old.split()
    (to, at) = _slot(rng)
    if [e for slot, e in world["calendar"].items() if slot.startswith(day)].count(event) > 1 or to == day:
        raise Impossible
    actions = (f"calendar.remove({day},{hour})", f"calendar.add({to},{at},{event})")
    return Task(f"move {event} from {day} to {to} {at}", actions, ((f"calendar.day({day})",),))


def _cost(rng: random.Random, world: World) -> Task:
    a, b = rng.sample(ITEMS, 2)
    total = str(_price(world, a) + _price(world, b))
    return Task(f"cost of {a} and {b}?", (), ((f"shop.price({a})",), (f"shop.price({b})",)), total)


# --- level 3 -----------------------------------------------------------------------------------------------------------


def _settle_all(rng: random.Random, world: World) -> Task:
    title, word = rng.choice(TITLES), rng.choice(WORDS)
    debts = [(entry[4:], value) for entry, value in world["bank"].items() if entry.startswith("owe ")]
    pays = [f"bank.pay({name},{value})" for name, value in debts]
    text = f"pay all i owe, then note {title} {word}"
    return Task(text, (*pays, f"notes.write({title},{word})"), (("bank.debts()",),))


def _mail_all(rng: random.Random, world: World) -> Task:
    (but,), word = _names(rng, world, 1), rng.choice(WORDS)
    sends = tuple(f"mail.send({name},{word})" for name in world["contacts"] if name != but)
    return Task(f"mail {word} to all contacts but {but}", sends, (("contacts.list()",),))


def _clear_day(rng: random.Random, world: World) -> Task:
    day = rng.choice(sorted(world["calendar"])).split()[0]
    (name,), word = _names(rng, world, 1), rng.choice(WORDS)
    slots = [slot.split() for slot in world["calendar"] if slot.startswith(day)]
    removes = [f"calendar.remove({d},{hour})" for d, hour in slots]
    text = f"cancel all of {day} and mail {name} {word}"
    return Task(text, (*removes, f"mail.send({name},{word})"), ((f"calendar.day({day})",),))


def _stock_up(rng: random.Random, world: World) -> Task:
    items = rng.sample(ITEMS, 3)
    stocked = [f"stock {item}" in world["shop"] for item in items]
    if all(stocked) or not any(stocked):
        raise Impossible
    actions = [
        f"shop.buy({item},1)" if there else f"todo.add({item})" for item, there in zip(items, stocked, strict=True)
    ]
    text = f"buy 1 {', '.join(items)}; if out of stock, todo it"
    return Task(text, tuple(actions), tuple((f"shop.stock({item})",) for item in items))


def _pay_or_say(rng: random.Random, world: World) -> Task:
    (name,), amount, word = _names(rng, world, 1), rng.randint(300, 900), rng.choice(WORDS)
    can = amount <= int(world["bank"]["balance"])
    action = f"bank.pay({name},{amount})" if can else f"mail.send({name},{word})"
    return Task(f"pay {name} {amount} if i can, else mail {name} {word}", (action,), (("bank.balance()",),))


def _tick_all(rng: random.Random, world: World) -> Task:
    items, (name,) = _open(world), _names(rng, world, 1)
    but, word = rng.choice(items), rng.choice(WORDS)
    ticks = [f"todo.done({item})" for item in items if item != but]
    text = f"tick all todos but {but}, mail {name} {word}"
    return Task(text, (*ticks, f"mail.send({name},{word})"), (("todo.list()",),))


def _cheapest(rng: random.Random, world: World) -> Task:
    items, title = rng.sample(ITEMS, 3), rng.choice(TITLES)
    prices = sorted((_price(world, item), item) for item in items)
    if prices[0][0] == prices[1][0]:
        raise Impossible
    price, item = prices[0]
    text = f"buy the cheapest of {', '.join(items)}; note its price as {title}"
    actions = (f"shop.buy({item},1)", f"notes.write({title},{price})")
    return Task(text, actions, tuple((f"shop.price({item})",) for item in items))


def _template(level: int, apps: str, make: Callable[[random.Random, World], Task]) -> Template:
    return Template(level, frozenset(apps.split()), make)


TEMPLATES: dict[str, Template] = {
    "pay": _template(1, "bank", _pay),
    "pay_two": _template(1, "bank", _pay_two),
    "mail": _template(1, "mail", _mail),
    "note": _template(1, "notes", _note),
    "todo": _template(1, "todo", _todo),
    "tick": _template(1, "todo", _tick),
    "buy": _template(1, "shop", _buy),
    "book": _template(1, "calendar", _book),
    "contact": _template(1, "contacts", _contact),
    "phone": _template(1, "contacts", _phone),
    "price": _template(1, "shop", _price_of),
    "settle": _template(2, "bank", _settle),
    "share_phone": _template(2, "contacts mail", _share_phone),
    "note_price": _template(2, "shop notes", _note_price),
    "pay_note": _template(2, "notes bank", _pay_note),
    "pass_on": _template(2, "mail", _pass_on),
    "move": _template(2, "calendar", _move),
    "cost": _template(2, "shop", _cost),
    "settle_all": _template(3, "bank notes", _settle_all),
    "mail_all": _template(3, "contacts mail", _mail_all),
    "clear_day": _template(3, "calendar mail", _clear_day),
    "stock_up": _template(3, "shop todo", _stock_up),
    "pay_or_say": _template(3, "bank mail", _pay_or_say),
    "tick_all": _template(3, "todo mail", _tick_all),
    "cheapest": _template(3, "shop notes", _cheapest),
}
