"""Tests that calls do what their docs say, tasks mean what their text says, and a verdict sees every change."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import pytest

from envs.base import play
from envs.builtin.toolbox.environment import NEEDED, Toolbox
from envs.builtin.toolbox.tasks import TEMPLATES
from envs.builtin.toolbox.world import API, APPS, Call, CallError, World, copy, difference, generate, manual, parse, run
from envs.types import Observation, Prompt, Verdict

WORLD: World = {
    "contacts": {"ann": 417, "bob": 503},
    "bank": {"balance": 100, "owe ann": 30},
    "shop": {"price pen": 7, "stock pen": 3, "price cup": 5},
    "mail": {"from bob": "hello"},
    "notes": {"rent": "45"},
    "todo": {"tea": "open", "jam": "done"},
    "calendar": {"mon 9": "gym", "mon 11": "call"},
}


def make_prompt(*actions: str, lookups: tuple[tuple[str, ...], ...] = (), answer: str | None = None) -> Prompt:
    task = {
        "world": "w",
        "text": "t",
        "actions": list(actions),
        "lookups": [list(x) for x in lookups],
        "answer": answer,
    }
    return Prompt("toolbox", "train", 0, (), task)


def responses(prompt: Prompt, *texts: str, **params: Any) -> Verdict:
    session = Toolbox(**params).open(prompt)
    answers = [session.reply(text) for text in texts]
    assert all(isinstance(answer, Observation) for answer in answers[:-1]), answers
    assert isinstance(answers[-1], Verdict), answers
    return answers[-1]


def outcome(world: World, text: str) -> str:
    try:
        return run(world, parse(text))
    except CallError as error:
        return f"error: {error}"


@pytest.mark.parametrize(
    ("call", "observation", "changes"),
    [
        ("contacts.list()", "ann, bob", {}),
        ("contacts.phone(ann)", "417", {}),
        ("contacts.phone(eva)", "error: no such contact", {}),
        ("contacts.add(eva,12)", "ok", {"contacts: eva": (None, 12)}),
        ("contacts.add(ann,12)", "error: ann is there already", {}),
        ("contacts.remove(bob)", "ok", {"contacts: bob": (503, None)}),
        ("bank.balance()", "100", {}),
        ("bank.owed(ann)", "30", {}),
        ("bank.owed(bob)", "0", {}),
        ("bank.debts()", "ann 30", {}),
        ("bank.pay(bob,10)", "ok", {"bank: balance": (100, 90), "bank: paid bob": (None, 10)}),
        (
            "bank.pay(ann,40)",
            "ok",
            {"bank: balance": (100, 60), "bank: owe ann": (30, None), "bank: paid ann": (None, 40)},
        ),
        ("bank.pay(ann,101)", "error: balance too low", {}),
        ("bank.pay(eva,1)", "error: no such contact", {}),
        ("bank.pay(ann,0)", "error: amount must be a number from 1 to 99999", {}),
        ("bank.pay(ann,030)", "error: amount must be a number from 1 to 99999", {}),
        ("bank.pya(ann,30)", "error: no such function bank.pya", {}),
        ("bank.pay(ann)", "error: bank.pay takes 2 arguments", {}),
        ("shop.price(pen)", "7", {}),
        ("shop.stock(pen)", "3", {}),
        ("shop.stock(cup)", "0", {}),
        ("shop.stock(map)", "error: no such item", {}),
        (
            "shop.buy(pen,3)",
            "ok",
            {"bank: balance": (100, 79), "shop: stock pen": (3, None), "shop: bought pen": (None, 3)},
        ),
        ("shop.buy(pen,4)", "error: not in stock", {}),
        ("mail.send(ann,see you at 9)", "ok", {"mail: sent ann see you at 9": (None, 1)}),
        ("mail.inbox()", "bob", {}),
        ("mail.read(bob)", "hello", {}),
        ("mail.read(ann)", "error: no such mail", {}),
        ("mail.remove(bob)", "ok", {"mail: from bob": ("hello", None)}),
        ("notes.list()", "rent", {}),
        ("notes.read(rent)", "45", {}),
        ("notes.write(rent,46)", "ok", {"notes: rent": ("45", "46")}),
        ("notes.remove(rent)", "ok", {"notes: rent": ("45", None)}),
        ("todo.list()", "tea", {}),
        ("todo.add(pen)", "ok", {"todo: pen": (None, "open")}),
        ("todo.add(jam)", "error: jam is there already", {}),
        ("todo.done(tea)", "ok", {"todo: tea": ("open", "done")}),
        ("todo.done(jam)", "error: jam is done already", {}),
        ("calendar.day(mon)", "9 gym, 11 call", {}),
        ("calendar.day(tue)", "none", {}),
        ("calendar.add(tue,9,gym)", "ok", {"calendar: tue 9": (None, "gym")}),
        ("calendar.add(mon,9,demo)", "error: mon 9 is there already", {}),
        ("calendar.add(may,9,demo)", "error: no such day, there are mon tue wed thu fri sat sun", {}),
        ("calendar.add(mon,20,demo)", "error: hours go from 8 to 19", {}),
        ("calendar.remove(mon,9)", "ok", {"calendar: mon 9": ("gym", None)}),
    ],
)
def test_every_function(call: str, observation: str, changes: dict[str, Any]) -> None:
    world = copy(WORLD)
    assert outcome(world, call) == observation
    assert difference(WORLD, world) == changes


def test_the_table_above_has_every_function() -> None:
    mark = next(m for m in test_every_function.pytestmark if m.name == "parametrize")  # type: ignore[attr-defined]
    assert {row[0].partition("(")[0] for row in mark.args[1]} >= set(API)


@pytest.mark.parametrize(
    "text",
    [
        *("", "bank.pay", "bank.pay(ann,30", "bank.pay(ann,(30))", "bank.pay(ann,30);finish()", "bank..pay(ann)"),
        *("Bank.pay(ann,30)", "bank.pay('ann',30)", "bank.pay(ann,30)\nfinish()", "bank.pay(ánn,3)", "bank.pay(ann,٣)"),
        *("a.b.c()", "(bank.pay)(ann,30)", "lambda: 0", "x" * 13 + "()", "bank.pay(" + "9" * 81 + ")", " " * 201),
    ],
)
def test_what_is_no_call(text: str) -> None:
    with pytest.raises(CallError, match=r"not a call|at most 200"):
        parse(text)


def test_spaces_around_a_call_and_its_commas_are_let_pass() -> None:
    assert parse(" mail.send( ann , see you )\n") == Call("mail.send", ("ann", "see you"))
    assert str(parse("notes.write(rent,  45)")) == "notes.write(rent,45)"


def test_a_call_that_fails_changes_nothing() -> None:
    rng = random.Random(0)
    words = ("ann", "bob", "pen", "cup", "tea", "jam", "rent", "mon", "9", "11", "99999", "3", "eva")
    failed = 0
    for _ in range(3000):
        name = rng.choice(list(API))
        world = copy(WORLD)
        answer = outcome(world, str(Call(name, tuple(rng.choices(words, k=len(API[name].signature))))))
        if answer.startswith("error"):
            failed += 1
            assert world == WORLD, (name, answer)
    assert failed > 500


def test_help_documents_every_function() -> None:
    session = Toolbox(max_calls=100).open(make_prompt())
    listed = ""
    for app in APPS:
        answer = session.reply(f"help({app})")
        assert isinstance(answer, Observation) and answer.messages[0].content == manual(app)
        listed += answer.messages[0].content
    assert all(f"{name}(" in listed for name in API)
    assert session.reply("help(bank.pay)") == session.reply(" help( bank.pay ) ")
    for text, words in (("help()", "contacts bank shop"), ("help(bank.pya)", "error: help takes")):
        answer = session.reply(text)
        assert isinstance(answer, Observation) and words in answer.messages[0].content


def owner(prompt: Prompt) -> str:
    return next(iter(generate(prompt.task["world"])["contacts"]))


def test_a_state_is_scored_however_it_was_reached() -> None:
    prompt = make_prompt()
    ann = owner(prompt)
    prompt = make_prompt(f"bank.pay({ann},30)")
    direct = responses(prompt, f"bank.pay({ann},30)", "finish()")
    assert direct == Verdict(1.0, correct=True, solution=f"bank.pay({ann},30); finish()")
    parts = responses(prompt, f"bank.pay({ann}, 10)", "bank.pya(x)", f"bank.pay({ann},20)", " finish() ")
    assert parts.solution == f"bank.pay({ann},10); bank.pay({ann},20); finish()"  # canonical, without what failed
    looked = responses(prompt, "bank.balance()", f"bank.pay({ann},30)", "finish()")
    assert looked.correct


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (("finish()",), "not done bank: balance"),
        (("bank.pay({a},31)", "finish()"), "not done bank: balance"),
        (("bank.pay({a},30)", "todo.add(zzz)", "finish()"), "touched todo: zzz"),
        (("bank.pay({a},30)", "mail.send({a},done)", "finish()"), "touched mail: sent"),
        (("bank.pay({a},30)", "answer(30)"), "no answer was asked for"),
        (("bank.pay({a},30)", "x", "x", "x", "x", "x"), "max_calls = 6 calls and no finish()"),
    ],
)
def test_what_is_not_the_task_earns_nothing(texts: tuple[str, ...], words: str) -> None:
    name = owner(make_prompt())
    verdict = responses(make_prompt(f"bank.pay({name},30)"), *(text.format(a=name) for text in texts))
    assert (verdict.reward, verdict.correct, verdict.solution) == (0.0, False, None)
    assert words in verdict.detail


@pytest.mark.parametrize("level", [1, 2, 3])
def test_one_change_too_many_or_too_few_is_seen(level: int) -> None:
    tasks = Toolbox(level=level, max_calls=30)
    for index in range(60):
        prompt = tasks.prompt("train", index)
        calls = play(tasks.open(prompt), tasks.expert(prompt, random.Random(index)).act).responses
        extra = responses(prompt, *calls[:-1], "notes.write(extra,1)", calls[-1], level=level, max_calls=30)
        assert extra.reward == 0.0 and "touched notes: extra" in extra.detail
        for action in prompt.task["actions"]:
            left_out = responses(prompt, *(c for c in calls if c != action), level=level)
            assert left_out.reward == 0.0 and "not done" in left_out.detail


def test_answers_are_compared() -> None:
    prompt = make_prompt(answer="417")
    assert responses(prompt, "answer(417)") == Verdict(1.0, correct=True, solution="answer(417)")
    assert responses(prompt, "answer( 417 )").correct
    assert responses(prompt, "answer(418)") == Verdict(0.0, detail="the answer is 417")
    assert responses(prompt, "finish()").reward == 0.0
    session = Toolbox().open(prompt)
    for text in ("answer()", "answer(4,17)", "finish(1)"):
        answer = session.reply(text)
        assert isinstance(answer, Observation) and answer.messages[0].content.startswith("error: end with")
    assert session.reply("answer(417)") == session.reply("finish()")  # it is over


def test_partial_credit_is_the_share_of_the_changes_made() -> None:
    prompt = make_prompt("notes.write(a,1)", "notes.write(b,2)", "notes.write(c,3)")
    for texts, reward in (
        (("finish()",), 0.0),
        (("notes.write(a,1)", "finish()"), 2 / 4),
        (("notes.write(a,1)", "notes.write(c,4)", "finish()"), 2 / 4),
        (("notes.write(a,1)", "todo.add(zz)", "finish()"), 0.0),
        (("notes.write(a,1)", "answer(1)"), 1 / 4),
    ):
        verdict = responses(prompt, *texts, partial=True)
        assert (verdict.reward, verdict.correct) == (pytest.approx(reward), False)
    done = ("notes.write(a,1)", "notes.write(b,2)", "notes.write(c,3)", "finish()")
    assert responses(prompt, *done, partial=True).reward == 1.0


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
