"""Defines the command line. Every command imports what it needs when it runs, so that --help answers at once."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from envs.quoting import shortened
from orchestration import cli_models
from orchestration.cli_models import note
from orchestration.defects import SHOW, defects
from orchestration.errors import ConfigError, IsentropeError
from orchestration.jobs import variables

app = typer.Typer(
    name="isentrope",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich takes longer than the rest of the help page
)
app.add_typer(cli_models.app)
OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}
# Keeps progress bars and banners of libraries off a terminal that shows a run.
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
MESSAGE_LIMIT = 300  # characters that a message is cut to where it has more than 2 kB: it quotes what was given
Seed = Annotated[int, typer.Option(help="Seed of the tasks.")]


def main() -> None:
    """Runs the console script. An error becomes one line on stderr and its exit code, one that nobody expected too."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        with defects():
            variables.load()
            app(standalone_mode=True)
    except IsentropeError as error:
        if os.environ.get(SHOW) == "1":
            traceback.print_exception(error)
        print(f"isentrope: {_bounded(str(error))}", file=sys.stderr)  # noqa: T201 - the command's own output
        if error.at_once:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(error.exit_code)
        sys.exit(error.exit_code)


def _bounded(text: str) -> str:
    """Returns a message that any terminal can show, without its middle where it is longer than 2 kB."""
    size = len(text.encode("utf-8", "backslashreplace"))
    return (text if size < 1950 else shortened(text, MESSAGE_LIMIT)).encode("utf-8", "backslashreplace").decode()


def say(text: Any) -> None:
    """Prints a line on stdout."""
    from rich.console import Console

    Console(soft_wrap=True).print(text)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"isentrope {version('isentrope')}")  # noqa: T201 - plain text, to be pasted
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Trains language models by reinforcement learning with the policy's entropy as a controlled variable."""


@app.command(context_settings=OVERRIDES)
def train(
    ctx: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the run's latest checkpoint, or begin where there is none.")
    ] = False,
    auto_resume: Annotated[
        bool,
        typer.Option(
            "--auto-resume", help="As --resume, and succeed where the run is finished: for a scheduler that restarts."
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run of the same name.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the resolved configuration and the resource plan, and start nothing."),
    ] = False,
) -> None:
    """Trains a policy. Override any key of the recipe with a.b=c or --a.b c, as often as you like."""
    from orchestration.config import preflight, run_config
    from orchestration.run import lifecycle, plan
    from orchestration.run.resume import is_finished

    if overwrite and (resume or auto_resume):
        raise ConfigError(
            "--overwrite begins the run anew and --resume and --auto-resume go on with it: give one of them"
        )
    config = run_config.load_config(recipe, ctx.args)
    if dry_run:
        preflight.run_preflight(config)
        print(plan.describe_plan(config))  # noqa: T201 - plain text, to be piped
        return
    if auto_resume and is_finished(config):
        note(f"{config.folder} is finished: nothing to do; begin anew with --overwrite")
        return
    with defects(config.folder):
        report_file = lifecycle.train(config, resume=resume or auto_resume, overwrite=overwrite, say=note)
    say(f"report: {report_file}")


@app.command(context_settings=OVERRIDES)
def submit(
    ctx: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe.")],
    address: Annotated[
        str | None,
        typer.Option(
            help="Head of the Ray cluster, http://HEAD:8265; default: RAY_API_SERVER_ADDRESS, or this machine."
        ),
    ] = None,
    working_dir: Annotated[
        Path | None,
        typer.Option(help="Folder to upload but what its .gitignore names; default: only what the run needs."),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", help="Name of an environment variable to take along; may be given several times."),
    ] = None,
    python: Annotated[
        str | None, typer.Option(help="Python on the nodes; default: the one that runs Ray on the head.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew; default: go on from a checkpoint.")
    ] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return once the job is submitted.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")] = False,
) -> None:
    """Trains on a Ray cluster, as a job. Follows its log and ends with its exit code; submitted again, the run goes on."""
    from orchestration.jobs.submit import Submission, run

    given = Submission(recipe, ctx.args, address, working_dir, env or (), python, overwrite, not no_wait)
    code = run(given, dry_run=dry_run, note=note)
    if code:
        raise typer.Exit(code)


RunFolder = Annotated[
    str, typer.Argument(help="Folder of the run, or its name in runs/; with --address a job, or its run's name.")
]
JobServer = Annotated[
    str | None,
    typer.Option(help="Head of the Ray cluster, http://HEAD:8265, that has the job `isentrope submit` made."),
]


@app.command()
def status(
    run: RunFolder,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print RUN/status.json with the state that was found.")
    ] = False,
    address: JobServer = None,
) -> None:
    """Says where a run stands. Running, finished, stopped, failed or dead; which phase waits for what."""
    if address is not None:
        from orchestration.jobs import control as jobs

        print(jobs.status(run, address))  # noqa: T201
        return
    from orchestration.commands import control

    print(control.status(run, as_json))  # noqa: T201 - plain text, to be piped


@app.command()
def stop(
    run: RunFolder,
    now: Annotated[bool, typer.Option("--now", help="Stop at once, without another checkpoint.")] = False,
    address: JobServer = None,
) -> None:
    """Stops a run, from any host that sees its folder. After a checkpoint of its last whole iteration, as SIGTERM does."""
    if address is not None:
        from orchestration.jobs import control as jobs

        print(jobs.stop(run, address, now))  # noqa: T201
        return
    from orchestration.commands import control

    print(control.stop(run, now))  # noqa: T201


@app.command()
def scale(
    run: RunFolder,
    to: Annotated[list[str], typer.Argument(help="generators=N: how many there should be.")],
) -> None:
    """Adds generators to a run, or takes some away, while it goes on. Within generators.min and generators.max."""
    from orchestration.commands import control

    print(control.scale(run, to))  # noqa: T201


@app.command()
def logs(
    run: RunFolder,
    name: Annotated[
        str | None, typer.Argument(help="An actor, such as generator-0; default: the run's events.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the run ends.")] = False,
    address: JobServer = None,
) -> None:
    """Prints the events of a run, or the output of one of its actors. Says where the output of each is."""
    if address is not None:
        if name is not None:
            raise ConfigError(
                f"a job has one log, of its driver, and {name[:100]} is an actor: leave it out, or --address"
            )
        from orchestration.jobs import control as jobs

        if code := jobs.logs(run, address, follow):
            raise typer.Exit(code)
        return
    from orchestration.commands.logs import show

    show(run, name, follow)


@app.command(context_settings=OVERRIDES)
def resume(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    step: Annotated[
        int | None,
        typer.Option("--from", min=0, help="Iteration of the checkpoint to go on from; default: the latest whole one."),
    ] = None,
) -> None:
    """Continues a run with its own configuration. Override any key with a.b=c; starts from nothing without a checkpoint."""
    from orchestration.run import lifecycle
    from orchestration.run.resume import config_of_run

    say(f"report: {lifecycle.train(config_of_run(run, ctx.args), resume=True, step=step, say=note)}")


@app.command()
def lab(
    grid: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped grid.")],
    runs: Annotated[Path, typer.Option(help="Folder in which the lab's own folder is made.")] = Path("runs"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Run everything again, replacing earlier results.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the runs of the grid, and start nothing.")] = False,
) -> None:
    """Runs a grid of methods x settings x seeds. Reports on it; called again, it continues where it stopped."""
    from orchestration.lab.runner import run

    run(grid, runs, overwrite=overwrite, dry_run=dry_run)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of the runs.")],
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: report.html in the first run's folder.")
    ] = None,
) -> None:
    """Writes a self-contained report.html on one run or several. Several are shown side by side."""
    from orchestration.report.run_report import write_report

    try:
        say(f"report: {write_report(runs, out or runs[0] / 'report.html')}")
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from None


@app.command("envs")
def environments() -> None:
    """Lists the built-in environments. Shows parameters and an example of each."""
    from orchestration.commands.play import list_environments

    list_environments()


@app.command(context_settings=OVERRIDES)
def play(
    ctx: typer.Context,
    env: Annotated[str, typer.Argument(help="Name of an environment; its parameters follow as name=value.")],
    index: Annotated[int, typer.Option(help="Index of the prompt in the train split.")] = 0,
    seed: Seed = 0,
) -> None:
    """Shows a prompt, takes your answer, prints the verdict. Parameters of the environment follow as name=value."""
    from orchestration.commands.play import play_by_hand

    play_by_hand(env, ctx.args, index, seed)


@app.command("init-model", context_settings=OVERRIDES)
def init_model(
    ctx: typer.Context,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe to take the environments and the model's folder from.")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", help="Name of an environment; may be given several times.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the model; default: the recipe's model.path.")] = None,
    cache: Annotated[Path, typer.Option(help="Folder in which finished models are cached.")] = Path("models/cache"),
) -> None:
    """Makes and warm-starts a tiny model. Settings follow as name=value: hidden_size=64 steps=700 ..."""
    from orchestration.commands.init_model import run

    run(recipe, env or [], ctx.args, out, cache)


@app.command(context_settings=OVERRIDES)
def precision(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Folder or Hugging Face id of the model.")],
    env: Annotated[
        str | None,
        typer.Option(
            help="Environment to take prompts from; its parameters follow as name=value. Default: one that fits the model."
        ),
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Number of prompts.")] = 64,
    responses: Annotated[int, typer.Option("--responses", "--replies", min=1, help="Responses to each prompt.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest response, in tokens.")] = 32,
    modes: Annotated[
        str | None, typer.Option(help="Comma-separated, of fp32, bf16, fp16, bf16-fp32head. Default: all.")
    ] = None,
    clip_low: Annotated[float, typer.Option(min=0, max=1, help="Ratios below 1 - clip_low count as clipped.")] = 0.2,
    clip_high: Annotated[float, typer.Option(min=0, help="Ratios above 1 + clip_high count as clipped.")] = 0.2,
    limit: Annotated[float, typer.Option(min=1, help="Seconds that one engine may take.")] = 600,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file to write the measurements to.")] = None,
) -> None:
    """Measures engine against trainer in every precision. No training: importance ratios should all be 1."""
    from orchestration.commands.precision import run
    from orchestration.commands.precision_probe import Options

    options = Options(env, ctx.args, prompts, responses, max_tokens, modes, clip_low, clip_high, seed, limit)
    run(model, options, out)


@app.command()
def doctor() -> None:
    """Checks this machine for what a run needs. Packages, memory, CUDA, Ray and the sandbox; starts no run."""
    from orchestration.commands.doctor import checks
    from orchestration.errors import PlacementError

    results = checks()
    for check in results:
        print(f"{'!' if check.missing else ' '} {check.name:14}{check.value}")  # noqa: T201 - plain text, to be pasted
    missing = [check.missing for check in results if check.missing]
    if missing:
        raise PlacementError(" ".join(missing))


@app.command()
def demo(
    runs: Annotated[Path, typer.Option(help="Folder in which the demo's own folder is made.")] = Path("runs"),
) -> None:
    """Trains a tiny model on two tasks, one after the other, without entropy control and with it. Needs no GPU."""
    from orchestration.lab.runner import run

    run("demo", runs, overwrite=True)


if __name__ == "__main__":
    main()
