"""Tests that calls of the toolbox do what their docs say, and that a verdict sees every change."""

from __future__ import annotations

import random
from typing import Any

import pytest
from support.toolbox import outcome, responses

from envs.base import play
from envs.builtin.toolbox.environment import Toolbox
from envs.builtin.toolbox.world import API, APPS, Call, CallError, World, copy, difference, generate, manual, parse
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
