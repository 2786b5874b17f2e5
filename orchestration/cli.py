"""The command line. Every command imports what it needs when it runs, so that --help answers at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestration.errors import ConfigError, IsentropeError

app = typer.Typer(
    name="isentrope",
    help="Reinforcement learning for language models with the policy's entropy as a controlled variable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich for the help page takes longer than the rest of it
)
OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}
# Progress bars and banners of libraries do not belong on a terminal that shows a run.
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
Seed = Annotated[int, typer.Option(help="Seed of the tasks.")]


def main() -> None:
    """Console script. An error of ours is one line on stderr and its own exit code; anything else is a traceback."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        app(standalone_mode=True)
    except IsentropeError as error:
        print(f"isentrope: {error}", file=sys.stderr)  # noqa: T201 - the command's own answer
        sys.exit(error.exit_code)


def say(text: Any) -> None:
    from rich.console import Console

    Console(soft_wrap=True).print(text)


@app.command(context_settings=OVERRIDES)
def train(
    ctx: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's latest checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run of that name.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved configuration and the resource plan.")
    ] = False,
) -> None:
    """Train. Overrides: a.b=c or --a.b c, as many as you like."""
    from orchestration.config import preflight as world
    from orchestration.config import run_config as configuration
    from orchestration.run import lifecycle as training

    config = configuration.load_config(recipe, ctx.args)
    if dry_run:
        world.check_world(config)
        print(training.describe_plan(config))  # noqa: T201 - to be piped
        return
    report_file = training.train(config, resume=resume, overwrite=overwrite)
    say(f"report: {report_file}")


@app.command()
def lab(
    grid: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped grid.")],
    runs: Annotated[Path, typer.Option(help="Where the lab's folder goes.")] = Path("runs"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Run everything again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be run.")] = False,
) -> None:
    """Run a grid of methods x settings x seeds; called again, it goes on where it stopped."""
    from orchestration.lab.runner import run

    run(grid, runs, overwrite=overwrite, dry_run=dry_run)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    out: Annotated[Path | None, typer.Option(help="Where to write; default: report.html in the first run.")] = None,
) -> None:
    """Write one self-contained report.html of one run, or of several side by side."""
    from orchestration.report.run_report import write_report

    try:
        say(f"report: {write_report(runs, out or runs[0] / 'report.html')}")
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from None


@app.command("envs")
def environments() -> None:
    """List the environments, with an example of each."""
    from orchestration.commands.play import list_environments

    list_environments()


@app.command(context_settings=OVERRIDES)
def play(
    ctx: typer.Context,
    env: Annotated[str, typer.Argument(help="An environment; its parameters follow as name=value.")],
    index: Annotated[int, typer.Option(help="Which prompt.")] = 0,
    seed: Seed = 0,
) -> None:
    """Answer a prompt by hand and see the verdict."""
    from orchestration.commands.play import play as run

    run(env, ctx.args, index, seed)


@app.command("init-model", context_settings=OVERRIDES)
def init_model(
    ctx: typer.Context,
    recipe: Annotated[
        str | None, typer.Option(help="Take environments and the model's folder from this recipe.")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", help="An environment by name; may be given several times.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The model folder to make; default: the recipe's model.path.")
    ] = None,
    cache: Annotated[Path, typer.Option(help="Where finished models are kept.")] = Path("models/cache"),
) -> None:
    """Make a tiny model and warm-start it. Settings follow as name=value: hidden_size=64 steps=700 ..."""
    from orchestration.commands.init_model import run

    run(recipe, env or [], ctx.args, out, cache)


@app.command(context_settings=OVERRIDES)
def precision(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="A Hugging Face folder or id.")],
    env: Annotated[
        str | None, typer.Option(help="Whose prompts to use; its parameters follow as name=value. Default: what fits.")
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="How many prompts.")] = 64,
    responses: Annotated[int, typer.Option("--responses", "--replies", min=1, help="Responses to each.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest response, in tokens.")] = 32,
    modes: Annotated[str | None, typer.Option(help="fp32,bf16,fp16,bf16-fp32head, or some of them.")] = None,
    clip_low: Annotated[float, typer.Option(min=0, max=1, help="Clip range below 1.")] = 0.2,
    clip_high: Annotated[float, typer.Option(min=0, help="Clip range above 1.")] = 0.2,
    limit: Annotated[float, typer.Option(min=1, help="Seconds an engine may take.")] = 600,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Write the numbers here, as JSON.")] = None,
) -> None:
    """Measure engine against trainer in every precision: ratios that should be 1, before any training."""
    from orchestration.commands.precision import run
    from orchestration.commands.precision_probe import Options

    options = Options(env, ctx.args, prompts, responses, max_tokens, modes, clip_low, clip_high, seed, limit)
    run(model, options, out)


@app.command()
def doctor() -> None:
    """Say what this machine has of what a run needs: packages, memory, CUDA, Ray, the sandbox. Starts nothing."""
    from orchestration.commands.doctor import checks
    from orchestration.errors import PlacementError

    found = checks()
    for check in found:
        print(f"{'!' if check.missing else ' '} {check.name:14}{check.found}")  # noqa: T201 - to be pasted
    missing = [check.missing for check in found if check.missing]
    if missing:
        raise PlacementError(" ".join(missing))


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Seed of both arms.")] = 0,
    runs: Annotated[Path, typer.Option(help="Where the two runs go.")] = Path("runs"),
) -> None:
    """GRPO against REPO-R on countdown, from a warm start to a table and one report.html. No GPU needed."""
    from orchestration.commands.demo import run

    run(seed, runs)


if __name__ == "__main__":
    main()
