"""Implements `isentrope precision MODEL`: how far engine and trainer differ in every precision, before any training.

For each mode an engine in that mode, in a process of its own, samples responses at temperature 1; the trainer's forward pass
in that mode scores the same tokens twice, padded and packed, and the float32 trainer once. All ratios should be 1: see
learner/ledger/phantom.py.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from envs import catalog
from envs.suggest import did_you_mean
from learner.settings import BODY, Mode
from orchestration.commands.precision_probe import Options, Row, Tasks, engine_responses, trainer_rows
from orchestration.config.loader import parse_overrides
from orchestration.config.model_folder import check_model
from orchestration.errors import ConfigError

PLAIN_LENGTHS = (8, 24)  # tokens of a prompt made of random ids
INIT_MODEL_RECORD = "isentrope_init.json"  # written by `init-model` beside the weights; has the environments it taught


def run(model: str, options: Options, out: Path | None) -> list[Row]:
    """Measures, prints the table and writes the numbers to `out`. Raises ConfigError for what cannot work in any mode."""
    from rich.console import Console

    modes = parse_modes(options.modes)
    check_model(model)
    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"--out {out} cannot be written: the folder {out.parent} does not exist")
    tasks = make_tasks(model, options)
    progress = Console(stderr=True)
    rows: dict[Mode, Row] = {mode: Row(mode) for mode in modes}
    responses = engine_responses(model, tasks, options, rows, progress)
    trainer_rows(model, responses, options, rows, progress)
    show(list(rows.values()), tasks, options)
    if out is not None:
        out.write_text(json.dumps(as_json(model, tasks, options, rows), indent=2) + "\n", "utf-8")
    return list(rows.values())


def parse_modes(text: str | None) -> list[Mode]:
    """Parses comma-separated names of modes; None stands for all. Raises ConfigError for an unknown one."""
    if text is None:
        return list(BODY)
    known: dict[str, Mode] = {mode: mode for mode in BODY}
    modes: list[Mode] = []
    for word in text.split(","):
        mode = known.get(word.strip())
        if mode is None:
            raise ConfigError(f"unknown precision '{word}': {did_you_mean(word, BODY)}known are {', '.join(BODY)}")
        modes.append(mode)
    return modes


# --- prompts ------------------------------------------------------------------------------------------------------------


def make_tasks(model: str, options: Options) -> Tasks:
    """Returns prompts that fit the model.

    They come from options.env; without one, from the environments that `init-model` taught, or from countdown. Where the
    tokenizer cannot encode those, they are random token ids. Raises ConfigError if nothing fits the model's context.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model).get_text_config()
    except (OSError, ValueError) as error:
        raise ConfigError(f"the model {model} cannot be loaded: {' '.join(str(error).split())}") from None
    tasks = _from_environments(model, options) or _plain(config.vocab_size, options)
    limit = getattr(config, "max_position_embeddings", None) or math.inf  # not every model limits it
    longest = max(map(len, tasks.prompts))
    if longest + options.max_tokens > limit:
        raise ConfigError(
            f"the longest prompt has {longest} tokens and --max-tokens is {options.max_tokens}, together more than the model's "
            f"{limit} positions: give fewer"
        )
    return tasks


def _from_environments(model: str, options: Options) -> Tasks | None:
    from orchestration.sampling.codec import HFCodec

    if options.params and options.env is None:
        raise ConfigError(f"{options.params[0]} is a parameter of an environment: name the environment with --env")
    specs = _environments(model, options)
    try:
        environments = [catalog.load(name, params, seed=options.seed) for name, params in specs]
        codec = HFCodec(model, chat_template=True)
        prompts = [environments[i % len(environments)].prompt("train", i) for i in range(options.prompts)]
        ids = tuple(codec.render(prompt.messages) for prompt in prompts)
    except (OSError, ValueError) as error:
        if options.env is None:
            return None
        raise ConfigError(f"--env {options.env}: {' '.join(str(error).split())}") from None
    unknown = codec.tokenizer.unk_token_id
    if unknown is not None and any(unknown in prompt for prompt in ids):
        if options.env is None:
            return None
        raise ConfigError(
            f"--env {options.env}: the model's tokenizer has no tokens for some of its prompts' characters"
        )
    return Tasks(ids, codec.stop_token_ids, "prompts of " + ", ".join(name for name, _ in specs))


def _environments(model: str, options: Options) -> list[tuple[str, Mapping[str, Any]]]:
    if options.env is not None:
        return [(options.env, dict(parse_overrides(options.params)))]
    record = Path(model) / INIT_MODEL_RECORD
    if record.is_file():
        taught = json.loads(record.read_text("utf-8"))["settings"]["environments"]
        return [(e["name"], e["params"]) for e in taught]
    return [("countdown", {})]


def _plain(vocabulary: int, options: Options) -> Tasks:
    rng = random.Random(options.seed)
    ids = tuple(
        tuple(rng.randrange(vocabulary) for _ in range(rng.randint(*PLAIN_LENGTHS))) for _ in range(options.prompts)
    )
    return Tasks(ids, (), "prompts of random tokens")


# --- the table ----------------------------------------------------------------------------------------------------------


def show(rows: Sequence[Row], tasks: Tasks, options: Options) -> None:
    """Prints the table of all modes and their notes."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=140)  # wide enough for the table when it is piped
    low, high = 1 - options.clip_low, 1 + options.clip_high
    table = Table(
        title=f"{tasks.source}; phantom clipping at a ratio outside [{low:g}, {high:g}]", title_justify="left"
    )
    for heading in (
        "precision", "tokens", "engine\nsigma", "\nq99.9", "\noutside\n[0.9, 1.1]", "\nclipped", "\nclipped\nrare",
        "packed\nsigma", "\noutside", "fp32\nsigma", "\noutside", "\nclipped\nrare",
    ):  # fmt: skip
        table.add_column(heading, justify="left" if heading == "precision" else "right", no_wrap=True)
    for row in rows:
        table.add_row(row.mode, str(row.tokens), *_cells(row))
    console.print(table, highlight=False)
    console.print("log ratio of the trainer to the engine, to itself packed instead of padded, to itself in float32")
    for row in rows:
        for note in row.notes:
            console.print(f"{row.mode}: {note}", highlight=False, markup=False)


def _cells(row: Row) -> list[str]:
    engine, packed, fp32 = row.engine, row.packed, row.fp32
    cells = ["-"] * 5 if engine is None else [
        f"{engine.sigma:.1e}", f"{engine.quantiles['q99.9']:.1e}", _percent(engine.all.outside), _percent(engine.all.clipped),
        _percent(engine.rare.clipped),
    ]  # fmt: skip
    cells += ["-"] * 2 if packed is None else [f"{packed.sigma:.1e}", _percent(packed.all.outside)]
    cells += ["-"] * 3 if fp32 is None else [
        f"{fp32.sigma:.1e}", _percent(fp32.all.outside), _percent(fp32.rare.clipped)
    ]  # fmt: skip
    return cells


def _percent(share: float) -> str:
    return "none" if math.isnan(share) else f"{100 * share:.2f} %"


def as_json(model: str, tasks: Tasks, options: Options, rows: Mapping[Mode, Row]) -> dict[str, Any]:
    """Returns everything measured as JSON values; nan, the share of no tokens, becomes null."""
    return {
        "model": model,
        "source": tasks.source,
        "options": asdict(options),
        "modes": {mode: _plain_values(asdict(row)) for mode, row in rows.items()},
    }


def _plain_values(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain_values(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
