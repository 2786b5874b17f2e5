"""Environments by hand: list them, answer one."""

from __future__ import annotations

import random
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from envs import catalog
from envs.base import Demonstrates, Environment
from envs.types import Verdict
from orchestration.config import parse_overrides
from orchestration.errors import ConfigError


def list_environments() -> None:
    """Every built-in: what it is, its parameters, and an example with a correct reply where it can be made."""
    console = Console()
    for name, summary, parameters in catalog.describe():
        console.print(f"[bold]{name}[/]  {escape(summary)}")
        console.print(f"  parameters  {escape(parameters) or 'none'}", highlight=False)
        try:
            environment = catalog.load(name, {})
        except (ValueError, TypeError) as error:  # a parameter without a default, or an extra that is not installed
            console.print(f"  example     needs parameters: {escape(str(error))}\n", highlight=False)
            continue
        console.print(f"  example     {escape(example(environment))}\n", highlight=False)


def example(environment: Environment) -> str:
    prompt = environment.prompt("train", 0)
    text = " | ".join(m.content for m in prompt.messages)
    if isinstance(environment, Demonstrates):
        text += f"  ->  {environment.demonstration(prompt, random.Random(0))}"
    return text.replace("\n", " ")


def play(name: str, overrides: Sequence[str], index: int, seed: int) -> Verdict:
    """One prompt, answered by a person on stdin until the environment gives its verdict."""
    console = Console()
    try:
        environment = catalog.load(name, dict(parse_overrides(overrides)), seed=seed)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    prompt = environment.prompt("train", index)
    for message in prompt.messages:
        console.print(f"[bold]{message.role}[/]  {escape(message.content)}", highlight=False)
    session = environment.open(prompt)
    while True:
        try:
            text = input("reply > ")
        except EOFError:
            raise ConfigError("no reply: the input ended before the verdict") from None
        answer = session.reply(text)
        if isinstance(answer, Verdict):
            break
        for message in answer.messages:
            console.print(f"[bold]{message.role}[/]  {escape(message.content)}", highlight=False)
    table = Table(show_header=False)
    for label, value in (
        ("reward", f"{answer.reward:g}"),
        ("correct", str(answer.correct)),
        ("status", str(answer.status)),
        ("solution", answer.solution or ""),
        ("detail", answer.detail),
    ):
        table.add_row(label, escape(value))
    console.print(table)
    return answer
