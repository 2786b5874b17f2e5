"""What the tasks of the toolbox ask, read from their text alone, and which tasks there are."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import pytest

from envs.base import play
from envs.builtin.toolbox.environment import NEEDED, Toolbox
from envs.builtin.toolbox.tasks import TEMPLATES
from envs.builtin.toolbox.world import World, generate, manual

# --- what the templates ask, read from their text alone ----------------------------------------------------------------


def _listed(text: str) -> list[str]:
    return text.split(", ")


def _cheapest(world: World, items: str, title: str) -> list[str]:
    best = min(_listed(items), key=lambda item: int(world["shop"][f"price {item}"]))
    return [f"shop.buy({best},1)", f"notes.write({title},{world['shop'][f'price {best}']})"]


MEANINGS: dict[str, tuple[str, Callable[..., list[str]]]] = {
    "pay": (r"pay (\w+) (\d+)", lambda w, a, x: [f"bank.pay({a},{x})"]),
    "pay_two": (r"pay (\w+) (\d+) and (\w+) (\d+)", lambda w, a, x, b, y: [f"bank.pay({a},{x})", f"bank.pay({b},{y})"]),
    "mail": (r"mail (\w+) (\w+)", lambda w, a, x: [f"mail.send({a},{x})"]),
    "note": (r"note (\w+) (\d+)", lambda w, t, x: [f"notes.write({t},{x})"]),
    "todo": (r"todo (\w+ \w+)", lambda w, i: [f"todo.add({i})"]),
    "tick": (r"tick (\w+ \w+)", lambda w, i: [f"todo.done({i})"]),
    "buy": (r"buy (\d) (\w+)", lambda w, n, i: [f"shop.buy({i},{n})"]),
    "book": (r"book (\w+) (\w+) (\d+)", lambda w, e, d, h: [f"calendar.add({d},{h},{e})"]),
    "contact": (r"contact (\w+) (\d+)", lambda w, a, x: [f"contacts.add({a},{x})"]),
    "phone": (r"phone of (\w+)(?:\?|, please|, now| again\?)", lambda w, a: [str(w["contacts"][a])]),
    "price": (r"price of (\w+)(?:\?|, please|, now| again\?)", lambda w, i: [str(w["shop"][f"price {i}"])]),
    "settle": (r"pay (\w+) what i owe", lambda w, a: [f"bank.pay({a},{w['bank'][f'owe {a}']})"]),
    "share_phone": (r"mail (\w+) the phone of (\w+)", lambda w, a, b: [f"mail.send({a},{w['contacts'][b]})"]),
    "note_price": (
        r"note the price of (\w+) as (\w+)",
        lambda w, i, t: [f"notes.write({t},{w['shop'][f'price {i}']})"],
    ),
    "pay_note": (r"pay (\w+) the amount in note (\w+)", lambda w, a, t: [f"bank.pay({a},{w['notes'][t]})"]),
    "pass_on": (r"send (\w+) the mail of (\w+)", lambda w, a, b: [f"mail.send({a},{w['mail'][f'from {b}']})"]),
    "move": (
        r"move (\w+) from (\w+) to (\w+) (\d+)",
        lambda w, e, d, to, at: [
            *(f"calendar.remove({d},{s.split()[1]})" for s, x in w["calendar"].items() if x == e and s.split()[0] == d),
            f"calendar.add({to},{at},{e})",
        ],
    ),
    "cost": (
        r"cost of (\w+) and (\w+)\?",
        lambda w, a, b: [str(int(w["shop"][f"price {a}"]) + int(w["shop"][f"price {b}"]))],
    ),
    "settle_all": (
        r"pay all i owe, then note (\w+) (\w+)",
        lambda w, t, x: [
            *(f"bank.pay({e.split()[1]},{v})" for e, v in w["bank"].items() if e.startswith("owe ")),
            f"notes.write({t},{x})",
        ],
    ),
    "mail_all": (
        r"mail (\w+) to all contacts but (\w+)",
        lambda w, x, a: [f"mail.send({n},{x})" for n in w["contacts"] if n != a],
    ),
    "clear_day": (
        r"cancel all of (\w+) and mail (\w+) (\w+)",
        lambda w, d, a, x: [
            *(f"calendar.remove({d},{s.split()[1]})" for s in w["calendar"] if s.split()[0] == d),
            f"mail.send({a},{x})",
        ],
    ),
    "stock_up": (
        r"buy 1 ([\w, ]+); if out of stock, todo it",
        lambda w, items: [
            f"shop.buy({i},1)" if w["shop"].get(f"stock {i}") else f"todo.add({i})" for i in _listed(items)
        ],
    ),
    "pay_or_say": (
        r"pay (\w+) (\d+) if i can, else mail (\w+) (\w+)",
        lambda w, a, x, b, y: [f"bank.pay({a},{x})" if int(x) <= w["bank"]["balance"] else f"mail.send({b},{y})"],
    ),
    "tick_all": (
        r"tick all todos but (\w+ \w+), mail (\w+) (\w+)",
        lambda w, i, a, x: [*(f"todo.done({t})" for t in w["todo"] if t != i), f"mail.send({a},{x})"],
    ),
    "cheapest": (r"buy the cheapest of ([\w, ]+); note its price as (\w+)", _cheapest),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_task_is_what_its_text_says(name: str) -> None:
    tasks = Toolbox(seed=3, level=TEMPLATES[name].level, templates=[name])
    pattern, meaning = MEANINGS[name]
    for split in ("train", "eval"):
        for index in range(30):
            prompt = tasks.prompt(split, index)
            match = re.fullmatch(pattern, prompt.messages[0].content)
            assert match, prompt.messages
            wanted = meaning(generate(prompt.task["world"]), *match.groups())
            if prompt.task["answer"] is not None:
                assert ([prompt.task["answer"]], prompt.task["actions"]) == (wanted, [])
            else:
                assert sorted(prompt.task["actions"]) == sorted(wanted)
            expert = play(tasks.open(prompt), tasks.expert(prompt, random.Random(index)).act)
            assert expert.verdict is not None and expert.verdict.correct
            assert not any(o.messages[0].content.startswith("error") for o in expert.observations)
            assert len(expert.responses) <= NEEDED[TEMPLATES[name].level]
            assert {call.split(".")[0] for call in expert.responses[:-1]} <= TEMPLATES[name].apps


def test_experts_draw_among_orders_and_look_ups() -> None:
    def drawn(name: str, level: int) -> set[str]:
        tasks = Toolbox(level=level, templates=[name])
        prompt = tasks.prompt("train", 0)
        played = [play(tasks.open(prompt), tasks.expert(prompt, random.Random(seed)).act) for seed in range(60)]
        return {str(p.verdict.solution) for p in played if p.verdict}

    assert len(drawn("pay_two", 1)) == 2
    assert len(drawn("settle", 2)) == 2
    assert len(drawn("settle_all", 3)) > 12


def test_level_1_is_short_enough_for_a_tiny_model() -> None:
    tasks = Toolbox()
    for index in range(300):
        prompt = tasks.prompt("train", index)
        played = play(tasks.open(prompt), tasks.expert(prompt, random.Random(0)).act)
        assert len(prompt.messages[0].content) < 30 and max(map(len, played.responses)) < 30
        assert len(played.responses) <= 3


@pytest.mark.parametrize("name", [name for name, template in TEMPLATES.items() if template.level == 1])
def test_level_1_holds_out_combinations_of_words_and_not_words(name: str) -> None:
    tasks = Toolbox(templates=[name])
    texts = {split: {tasks.prompt(split, i).messages[0].content for i in range(1000)} for split in ("train", "eval")}
    outcome, asked = (set(re.findall(r"\w+", " ".join(texts[split]))) for split in ("train", "eval"))
    assert not texts["train"] & texts["eval"]
    assert len(texts["eval"]) >= 6
    assert asked <= outcome


def test_levels_apps_and_templates_choose_the_tasks() -> None:
    assert len(TEMPLATES) >= 12 and {t.level for t in TEMPLATES.values()} == {1, 2, 3}
    texts = [Toolbox(apps=["todo", "bank"]).prompt("train", i).messages[0].content for i in range(60)]
    assert {text.split()[0] for text in texts} == {"todo", "tick", "pay"}
    assert Toolbox(templates=["phone"]).prompt("eval", 3).messages[0].content.startswith("phone of ")


def test_a_system_text_can_hold_the_manual() -> None:
    system = Toolbox(system="You call: {manual}").prompt("train", 0).messages[0]
    assert (system.role, system.content) == ("system", f"You call: {manual()}")


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"level": 4}, "level is 4, it must be 1 to 3"),
        ({"max_calls": 2}, "max_calls is 2, it must be 3 to 100 at level 1"),
        ({"apps": ["bnak"]}, "unknown app 'bnak': did you mean 'bank'"),
        ({"templates": ["cheapest"]}, "unknown template 'cheapest'"),
        ({"level": 2, "apps": ["todo"]}, "no template of level 2 needs only the apps todo"),
        ({"templates": []}, "no template of level 1"),
    ],
)
def test_impossible_parameters_are_a_sentence(params: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match="toolbox") as caught:
        Toolbox(**params)
    assert words in str(caught.value) and "\n" not in str(caught.value)
