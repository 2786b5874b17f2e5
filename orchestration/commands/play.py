"""Implements `isentrope envs` and `isentrope play`: lists the environments, and lets a person answer a prompt."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from orchestration.text import one_line


def list_environments() -> None:
    """Prints every built-in environment: summary, parameters, and an example with a correct response where there is one."""
    console = Console(soft_wrap=True)
    for name, summary, parameters in catalog.describe():
        console.print(f"[bold]{name}[/]  {escape(summary)}")
        console.print(f"  parameters  {escape(parameters) or 'none'}", highlight=False)
        with tempfile.TemporaryDirectory() as folder:
            params = _example_params(name, Path(folder))
            try:
                text = example(catalog.load(name, params))
            except ValueError as error:  # for example, an optional package is not installed
                text = f"none: {error}"
        arguments = "".join(f" {k}={v}" for k, v in params.items())
        console.print(f"  example    {escape(arguments)} {escape(text)}\n", highlight=False)


def _example_params(name: str, folder: Path) -> dict[str, Any]:
    """Returns parameters for the environments that need some to make an example."""
    if name == "reasoning_gym":
        return {"families": "basic_arithmetic"}
    if name == "questions":
        path = folder / "questions.jsonl"
        path.write_text('{"prompt": "What is half of 3?", "answer": "3/2"}\n' * 2, "utf-8")
        return {"path": str(path), "eval_fraction": 0.0}
    return {}


def example(environment: Environment) -> str:
    """Returns the first prompt in one line, with a correct conversation if the environment demonstrates any."""
    prompt = environment.prompt("train", 0)
    text = " | ".join(m.content for m in prompt.messages)
    if demonstrates(environment):
        played = demonstrate(environment, prompt, random.Random(0))
        observations = [" | ".join(m.content for m in observation.messages) for observation in played.observations]
        turns = [f"{response} [{text}]" for response, text in zip(played.responses, observations, strict=False)]
        text += f"  ->  {'  '.join((*turns, played.responses[-1]))}"
    return text.replace("\n", " ")


@contextmanager
def _said_by(name: str) -> Iterator[None]:
    """Turns what an environment raises, a user's own perhaps, into a ConfigError: a sentence of its own, or where it was raised."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ConfigError(one_line(error)) from error
    except Exception as error:
        raise ConfigError(f"environment '{name}': {catalog.error_in_one_line(error)}") from error


def play_by_hand(name: str, overrides: Sequence[str], index: int, seed: int) -> Verdict:
    """Lets a person answer a prompt on stdin until the environment gives its verdict; returns the verdict."""
    console = Console(soft_wrap=True)
    params = dict(parse_overrides(overrides))
    with _said_by(name):
        environment = catalog.load(name, params, seed=seed)
        prompt = environment.prompt("train", index)
        session = environment.open(prompt)
    for message in prompt.messages:
        console.print(f"[bold]{message.role}[/]  {escape(message.content)}", highlight=False)
    while True:
        try:
            text = input("response > ")
        except EOFError:
            raise ConfigError("no response: the input ended before the verdict") from None
        with _said_by(name):
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
