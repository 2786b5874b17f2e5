"""Environments by hand: list them, answer one."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from envs import catalog
from envs.base import Environment, demonstrate, demonstrates
from envs.types import Verdict
from orchestration.config.loader import parse_overrides
from orchestration.errors import ConfigError


def list_environments() -> None:
    """Every built-in: what it is, its parameters, and an example with a correct response where it can be made."""
    console = Console(soft_wrap=True)
    for name, summary, parameters in catalog.describe():
        console.print(f"[bold]{name}[/]  {escape(summary)}")
        console.print(f"  parameters  {escape(parameters) or 'none'}", highlight=False)
        with tempfile.TemporaryDirectory() as folder:
            params = _example_params(name, Path(folder))
            try:
                text = example(catalog.load(name, params))
            except ValueError as error:  # an extra that is not installed, say
                text = f"none: {error}"
        given = "".join(f" {k}={v}" for k, v in params.items())
        console.print(f"  example    {escape(given)} {escape(text)}\n", highlight=False)


def _example_params(name: str, folder: Path) -> dict[str, Any]:
    """Parameters for the environments that cannot be shown without any."""
    if name == "reasoning_gym":
        return {"families": "basic_arithmetic"}
    if name == "questions":
        path = folder / "questions.jsonl"
        path.write_text('{"prompt": "What is half of 3?", "answer": "3/2"}\n' * 2, "utf-8")
        return {"path": str(path), "eval_fraction": 0.0}
    return {}


def example(environment: Environment) -> str:
    prompt = environment.prompt("train", 0)
    text = " | ".join(m.content for m in prompt.messages)
    if demonstrates(environment):
        played = demonstrate(environment, prompt, random.Random(0))
        seen = [" | ".join(m.content for m in observation.messages) for observation in played.observations]
        turns = [f"{response} [{said}]" for response, said in zip(played.responses, seen, strict=False)]
        text += f"  ->  {'  '.join((*turns, played.responses[-1]))}"
    return text.replace("\n", " ")


def play(name: str, overrides: Sequence[str], index: int, seed: int) -> Verdict:
    """One prompt, answered by a person on stdin until the environment gives its verdict."""
    console = Console(soft_wrap=True)
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
            text = input("response > ")
        except EOFError:
            raise ConfigError("no response: the input ended before the verdict") from None
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
