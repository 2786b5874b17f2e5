"""Implements `isentrope export RUN OUT`: a checkpoint's weights with a model card that says how they were trained.

The folder is one that transformers, vLLM and a model hub take. The card, README.md, has what the run's report has in a few lines:
settings, rewards and pass@k before and after, and what the entropy ledger recorded.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from learner.checkpoint import read_state, verify
from learner.warmstart.whole_folder import written_whole
from orchestration.analysis.diagnosis import diagnose
from orchestration.analysis.findings import method_name
from orchestration.analysis.run_data import RunData, load_run
from orchestration.analysis.run_summary import RunSummary, summary_of
from orchestration.commands.model_source import ADAPTER_CONFIG, find_model
from orchestration.commands.push import Hub
from orchestration.errors import ConfigError, IsentropeError
from orchestration.run.resume import own_config
from orchestration.text import number, one_line, percent

CARD, SETTINGS = "README.md", "isentrope.yaml"


def export(
    given: str,
    out: Path,
    say: Callable[[str], None],
    merged: bool = False,
    push: str | None = None,
    public: bool = False,
) -> Path:
    """Writes the folder `out`, whole or not at all, and returns it. ConfigError for another model and for a folder that exists.

    Of a run that trained an adapter it holds the adapter, in peft's format, or if `merged` the base model with the adapter added.
    push: the hub's repository that it is sent to afterwards, private unless `public`; see push.py.
    """
    source = find_model(given)
    if source.run is None or source.checkpoint is None:
        raise ConfigError(f"{given} is not a run or a checkpoint of one: its folder can be used as it is")
    if out.exists():
        raise ConfigError(f"{out} exists: give a folder that does not, or remove it")
    checkpoint = Path(source.model).parent
    try:
        state = read_state(checkpoint)
        verify(checkpoint, state)
        run = load_run(source.run)
    except Exception as error:
        raise ConfigError(f"{checkpoint} cannot be exported: {one_line(error)}") from error
    weights = Path(source.model)
    adapter = (weights / ADAPTER_CONFIG).is_file()
    if merged and not adapter:
        raise ConfigError(f"{weights} is a whole model: leave --merged out, which adds an adapter to its base model")
    base = _base_of(weights) if merged else ""
    iteration = int(source.checkpoint.rpartition("_")[2])
    hub = None if push is None else Hub(push, public)
    try:
        with written_whole(out, lambda: False) as folder:
            shutil.copytree(weights, folder, dirs_exist_ok=True)
            if merged:
                _merge(weights, base, folder)
            (folder / SETTINGS).write_text(yaml.safe_dump(own_config(source.run), sort_keys=False), "utf-8")
            (folder / CARD).write_text(card(run, iteration), "utf-8")
    except OSError as error:
        raise IsentropeError(f"{out} cannot be written: {one_line(error)}") from error
    what = "the base model with the adapter added, in float32" if merged else "the adapter" if adapter else "the model"
    say(f"exported: {out}, {what}, iteration {iteration} of {run.name}")
    if hub is not None:
        hub.push(out, f"{run.name} after {iteration} iterations", say)
    return out


def _base_of(adapter: Path) -> str:
    """Returns the base model that an adapter names, a folder that is there or an id."""
    base = str(json.loads((adapter / ADAPTER_CONFIG).read_text("utf-8"))["base_model_name_or_path"])
    if Path(base).is_absolute() and not (Path(base) / "config.json").is_file():
        raise ConfigError(f"the base model {base}, which {adapter / ADAPTER_CONFIG} names, is not there: put it back")
    return base


def _merge(adapter: Path, base: str, out: Path) -> None:
    """Replaces the adapter's files in a copy of its folder by the merged model's."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # as in Policy.adapt: peft imports it
    from learner.adapters.merge import merge  # torch from here on

    for name in (ADAPTER_CONFIG, "adapter_model.safetensors"):
        (out / name).unlink()
    merge(adapter, base, out)


def card(run: RunData, iteration: int) -> str:
    """Returns the model card of a run's checkpoint, in Markdown with a hub's front matter."""
    rows = [row for row in run.rows if row["iteration"] <= iteration]
    cut = RunData(run.name, rows, run.samples, run.config, run.config_text)
    base = str(run.setting("model.path"))
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["reinforcement-learning", "isentrope"],
    }
    if "/" in base and not base.startswith((".", "/", "~", "models/", "runs/")):
        front["base_model"] = base  # a hub takes ids alone
    summary = summary_of(cut)
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).rstrip(),
        "---",
        "",
        f"# {run.name}",
        "",
        f"{base} after {iteration} iterations of reinforcement learning with Isentrope. Every setting of the run is in",
        f"[{SETTINGS}]({SETTINGS}); `isentrope train {SETTINGS}` repeats it where model and data are.",
        "",
        "## Training",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in _settings(cut)),
        "",
        "## Results",
        "",
        "| | start | end |",
        "|---|---:|---:|",
        *(f"| {name} | {number(start)} | {number(end)} |" for name, start, end in _results(summary)),
        "",
        "## Entropy ledger",
        "",
        *_ledger(cut, summary),
        "",
    ]
    return "\n".join(lines)


def _settings(run: RunData) -> Iterator[tuple[str, object]]:
    names = [str(env.get("name")) for env in run.setting("environments") or []]
    names += [str(env.get("name")) for stage in run.setting("stages") or [] for env in stage.get("environments", [])]
    yield "environments", ", ".join(dict.fromkeys(names)) or "none"
    yield "batch", f"{run.setting('batch.prompts')} prompts x {run.setting('batch.responses')} responses"
    yield (
        "objective",
        f"{run.setting('objective.advantage')} advantages, {run.setting('objective.surrogate')} surrogate",
    )
    yield "learning rate", f"{run.setting('learner.lr')}"
    yield "precision", run.setting("precision.mode")
    controller = run.setting("entropy.controller.kind")
    yield "entropy control", method_name(run) + (f", controller {controller}" if controller else "")
    yield "seed", run.setting("run.seed")


def _results(summary: RunSummary) -> Iterator[tuple[str, float, float]]:
    yield "reward", summary.reward_start, summary.reward_end
    for k, value in sorted(summary.pass_at.items()):
        yield f"pass@{k}, held out", summary.pass_at_start.get(k, math.nan), value
    yield "entropy, nats a token", summary.entropy_start, summary.entropy_end


def _ledger(run: RunData, summary: RunSummary) -> Iterator[str]:
    if math.isfinite(summary.entropy_change):
        yield f"- Entropy changed by {percent(summary.entropy_change, sign=True)} over the run."
    for key, what in (("entropy/predicted_dh", "predicted for"), ("entropy/realised_dh", "realised by")):
        values = [value for value in run.column(key) if math.isfinite(value)]
        if values:
            yield f"- Change {what} the updates, summed over {len(values)} of them: {sum(values):+.3f} nats a token."
    if math.isfinite(summary.target_error_last_third):
        off = percent(summary.target_error_last_third)
        yield f"- Target at the end: {number(summary.target)} nats; off by {off} in the last third."
    for finding in diagnose(run):
        if finding.topic in ("cause", "split", "prediction", "saturation"):
            yield f"- {finding.text}"
